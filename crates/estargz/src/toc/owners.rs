//! The names of users and groups, which a TOC has once for each id.

use std::collections::HashMap;

use super::json::RawEntry;

/// Names of owners, which entries leave out when they repeat.
#[derive(Debug)]
pub(crate) struct Owners {
    pub(super) texts: Vec<String>,
    numbers: HashMap<String, u32>,
    users: HashMap<i64, u32>,
    groups: HashMap<i64, u32>,
    /// Whether an entry without a name has the last name of its id.
    is_carried_forward: bool,
}

impl Default for Owners {
    fn default() -> Self {
        Self {
            texts: vec![String::new()],
            numbers: HashMap::new(),
            users: HashMap::new(),
            groups: HashMap::new(),
            is_carried_forward: true,
        }
    }
}

impl Owners {
    pub(super) const NOBODY: u32 = 0;

    /// The names of a tar, in which an entry has only its own.
    pub(super) fn of_tar() -> Self {
        Self {
            is_carried_forward: false,
            ..Self::default()
        }
    }

    /// Returns the number of names, or of ids with a name if that is larger.
    pub(super) fn len(&self) -> usize {
        self.texts
            .len()
            .max(self.users.len())
            .max(self.groups.len())
    }

    /// Returns the numbers of the names of the user and the group of `entry`. Entries must be
    /// passed in order.
    pub(crate) fn of(&mut self, entry: &RawEntry<'_>) -> (u32, u32) {
        if !entry.user_name.is_empty() {
            let number = self.number(&entry.user_name);
            self.users.insert(entry.uid, number);
        }
        if !entry.group_name.is_empty() {
            let number = self.number(&entry.group_name);
            self.groups.insert(entry.gid, number);
        }
        let known = |names: &HashMap<i64, u32>, id, own: &str| match names.get(&id) {
            Some(number) if self.is_carried_forward || !own.is_empty() => *number,
            _ => Self::NOBODY,
        };
        (
            known(&self.users, entry.uid, &entry.user_name),
            known(&self.groups, entry.gid, &entry.group_name),
        )
    }

    pub(crate) fn text(&self, number: u32) -> &str {
        &self.texts[number as usize]
    }

    fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = u32::try_from(self.texts.len()).unwrap_or(Self::NOBODY);
        self.texts.push(text.to_owned());
        self.numbers.insert(text.to_owned(), number);
        number
    }
}
