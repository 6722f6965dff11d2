//! The policy: which clients may do what with which images. Pure.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::oci::route::Location;

use super::identity::Identity;

/// One rule: these clients may do this with these images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    /// `anyone`, also without credentials; `user:NAME`, known to this server, in which `*` is any
    /// text; `upstream`, a client whose own credentials the upstream accepts for the repository.
    pub who: Vec<Who>,
    /// `pull`; `profiles`, reading and reporting the use of images; `warm`, conversions by API;
    /// `admin`, status, page and metrics.
    pub may: Vec<Action>,
    /// Images as `UPSTREAM/REPOSITORY`. `*` is any part of a path component, `**` any text. For
    /// `upstream` the upstream has no wildcard, because it gets the client's credentials.
    pub images: Vec<ImagePattern>,
}

/// An action on an image, or on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Pull,
    Profiles,
    Warm,
    Admin,
}

impl Action {
    /// Every action.
    pub(super) const ALL: [Self; 4] = [Self::Pull, Self::Profiles, Self::Warm, Self::Admin];
}

/// The clients that a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    Anyone,
    /// Users of this server, by a pattern for their names.
    User(Pattern),
    /// Clients whose own credentials the upstream accepts.
    Upstream,
}

/// A text is neither a client nor a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is {1}")]
pub struct ParseRuleError(String, &'static str);

/// A text in which `*` stands for other texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Box<str>);

/// A pattern for `UPSTREAM/REPOSITORY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePattern(Pattern);

impl Pattern {
    fn matches(&self, text: &str) -> bool {
        matches(self.0.as_bytes(), text.as_bytes())
    }
}

/// Whether the pattern describes the whole text: `*` is anything but `/`, `**` is anything.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut pos) = (0, 0);
    // The last wildcard of each kind, and the end of the text that it has taken so far.
    let (mut within, mut across) = (None::<(usize, usize)>, None::<(usize, usize)>);
    loop {
        match (pattern.get(at), text.get(pos)) {
            (Some(b'*'), _) if pattern.get(at + 1) == Some(&b'*') => {
                (across, within) = (Some((at + 2, pos)), None);
                at += 2;
                continue;
            }
            (Some(b'*'), _) => {
                within = Some((at + 1, pos));
                at += 1;
                continue;
            }
            (None, None) => return true,
            (Some(wanted), Some(byte)) if wanted == byte => {
                (at, pos) = (at + 1, pos + 1);
                continue;
            }
            _ => {}
        }
        let retried = match (&mut within, &mut across) {
            (Some((next, taken)), _) if text.get(*taken).is_some_and(|byte| *byte != b'/') => {
                *taken += 1;
                Some((*next, *taken))
            }
            (_, Some((next, taken))) if *taken < text.len() => {
                *taken += 1;
                within = None;
                Some((*next, *taken))
            }
            _ => None,
        };
        let Some(retried) = retried else { return false };
        (at, pos) = retried;
    }
}

impl ImagePattern {
    fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }

    /// Whether the pattern describes every image.
    fn is_all(&self) -> bool {
        &*self.0.0 == "**"
    }

    /// Whether the pattern names one upstream.
    fn names_upstream(&self) -> bool {
        let upstream = self.0.0.split_once('/').map(|(upstream, _)| upstream);
        upstream.is_some_and(|upstream| !upstream.is_empty() && !upstream.contains('*'))
    }
}

impl FromStr for Who {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "anyone" => Ok(Self::Anyone),
            None if text == "upstream" => Ok(Self::Upstream),
            Some(("user", name)) if !name.is_empty() => Ok(Self::User(Pattern(name.into()))),
            _ => Err(ParseRuleError(
                text.to_owned(),
                "neither anyone nor user:NAME nor upstream",
            )),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("anyone"),
            Self::User(pattern) => write!(f, "user:{}", pattern.0),
            Self::Upstream => f.write_str("upstream"),
        }
    }
}

impl FromStr for ImagePattern {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_name = |byte: u8| {
            byte.is_ascii_lowercase()
                || byte.is_ascii_digit()
                || matches!(byte, b'.' | b'-' | b'_' | b'/' | b':' | b'*')
        };
        let has_upstream = text == "**" || text.contains('/');
        if has_upstream && !text.starts_with('/') && text.bytes().all(is_name) {
            Ok(Self(Pattern(text.into())))
        } else {
            Err(ParseRuleError(
                text.to_owned(),
                "not of the form UPSTREAM/REPOSITORY, with * or **",
            ))
        }
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.0)
    }
}

impl Serialize for Who {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Who {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl Serialize for ImagePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImagePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// All rules.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    rules: Vec<AccessRule>,
}

impl Policy {
    pub(crate) fn new(rules: &[AccessRule]) -> Self {
        let rules = if rules.is_empty() {
            vec![open()]
        } else {
            rules.to_vec()
        };
        Self { rules }
    }

    /// Whether the rules allow the action by their own word, so that this server's credentials are
    /// used.
    pub(super) fn allows(&self, identity: &Identity, action: Action, location: &Location) -> bool {
        let name = name_of(location);
        self.of(action)
            .filter(|rule| is_for(rule, identity))
            .any(|rule| rule.images.iter().any(|images| images.matches(&name)))
    }

    /// Whether the rules leave the decision to the upstream.
    pub(super) fn asks_upstream(&self, action: Action, location: &Location) -> bool {
        let name = name_of(location);
        self.of(action)
            .filter(|rule| rule.who.contains(&Who::Upstream))
            .any(|rule| rule.images.iter().any(|images| images.matches(&name)))
    }

    /// Whether the rules allow the action for every image.
    pub(super) fn allows_all(&self, identity: &Identity, action: Action) -> bool {
        self.of(action)
            .filter(|rule| is_for(rule, identity))
            .any(|rule| rule.images.iter().any(ImagePattern::is_all))
    }

    /// Whether a client without credentials may do everything that there is, so that none need
    /// any.
    pub(super) fn is_open(&self) -> bool {
        self.allows_all(&Identity::Anonymous, Action::Pull)
    }

    /// Whether any rule leaves a decision to an upstream.
    pub(super) fn has_upstream(&self) -> bool {
        self.rules
            .iter()
            .any(|rule| rule.who.contains(&Who::Upstream))
    }

    fn of(&self, action: Action) -> impl Iterator<Item = &AccessRule> {
        self.rules
            .iter()
            .filter(move |rule| rule.may.contains(&action))
    }
}

/// The rule of a server on loopback: its clients are on this machine.
fn open() -> AccessRule {
    AccessRule {
        who: vec![Who::Anyone],
        may: Action::ALL.to_vec(),
        images: vec![ImagePattern(Pattern("**".into()))],
    }
}

impl AccessRule {
    /// Whether a rule that passes credentials on names the upstream in each pattern.
    pub(crate) fn names_its_upstreams(&self) -> bool {
        !self.who.contains(&Who::Upstream) || self.images.iter().all(ImagePattern::names_upstream)
    }
}

fn is_for(rule: &AccessRule, identity: &Identity) -> bool {
    rule.who.iter().any(|who| match (who, identity) {
        (Who::Anyone, _) => true,
        (Who::User(pattern), Identity::User(name)) => pattern.matches(name),
        (Who::User(_) | Who::Upstream, _) => false,
    })
}

fn name_of(location: &Location) -> String {
    format!("{}/{}", location.upstream, location.repository)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matched(pattern: &str, text: &str) -> bool {
        pattern.parse::<ImagePattern>().unwrap().matches(text)
    }

    #[test]
    fn one_star_stays_within_a_component_and_two_cross_it() {
        for (pattern, fits, unfit) in [
            (
                "a.b/c",
                &["a.b/c"][..],
                &["a.b/cd", "a.b/c/d", "xa.b/c"][..],
            ),
            ("a/*", &["a/b", "a/bc"], &["a/b/c", "b/a"]),
            ("a/*/c", &["a/b/c"], &["a/b/b/c", "a/c"]),
            ("a/**", &["a/b", "a/b/c"], &["ab/c", "b/a/c"]),
            ("a/**/z", &["a/b/z", "a/b/c/z"], &["a/b/zz", "a/z/b"]),
            ("a/b-*/x*z", &["a/b-1/xyz", "a/b-/xz"], &["a/b-1/xy/z"]),
            ("a/**-b/*c", &["a/x/y-b/zc", "a/-b/-b/c"], &["a/x-b/c/d"]),
            ("**", &["a/b", "x/y/z"], &[]),
        ] {
            for text in fits {
                assert!(matched(pattern, text), "{pattern} {text}");
            }
            for text in unfit {
                assert!(!matched(pattern, text), "{pattern} {text}");
            }
        }
    }

    /// The same rule, without a thought for time.
    fn naive(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', b'*', rest @ ..] => (0..=text.len()).any(|at| naive(rest, &text[at..])),
            [b'*', rest @ ..] => (0..=text.len())
                .take_while(|at| !text[..*at].contains(&b'/'))
                .any(|at| naive(rest, &text[at..])),
            [byte, rest @ ..] => text.first() == Some(byte) && naive(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_their_definition_says(pattern in "[ab/*]{0,10}", text in "[ab/]{0,12}") {
            prop_assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                naive(pattern.as_bytes(), text.as_bytes()),
                "{} {}", pattern, text
            );
        }
    }

    fn location(upstream: &str, repository: &str) -> Location {
        Location {
            upstream: upstream.to_owned(),
            repository: repository.parse().unwrap(),
        }
    }

    #[test]
    fn a_rule_is_about_its_clients_actions_and_images() {
        #[derive(Deserialize)]
        struct Rules {
            rule: Vec<AccessRule>,
        }
        let text = "
            [[rule]]
            who = ['anyone']
            may = ['pull']
            images = ['docker.io/library/*']
            [[rule]]
            who = ['user:alice', 'user:ci-*']
            may = ['pull', 'warm']
            images = ['private/team-a/**']
            [[rule]]
            who = ['upstream']
            may = ['pull']
            images = ['private/team-b/*']
        ";
        let rules: Rules = toml::from_str(text).unwrap();
        let policy = Policy::new(&rules.rule);
        let user = |name: &str| Identity::User(name.to_owned());
        let (public, a, b) = (
            location("docker.io", "library/nginx"),
            location("private", "team-a/x/y"),
            location("private", "team-b/x"),
        );
        let cases = [
            (Identity::Anonymous, Action::Pull, &public, true),
            (Identity::Anonymous, Action::Warm, &public, false),
            (Identity::Anonymous, Action::Pull, &a, false),
            (user("alice"), Action::Pull, &public, true),
            (user("alice"), Action::Pull, &a, true),
            (user("ci-7"), Action::Warm, &a, true),
            (user("alice"), Action::Profiles, &a, false),
            (user("alice"), Action::Pull, &b, false),
            (user("malice"), Action::Pull, &a, false),
        ];
        for (identity, action, location, expected) in cases {
            assert_eq!(
                policy.allows(&identity, action, location),
                expected,
                "{identity:?} {action:?} {location:?}"
            );
        }
        assert!(policy.asks_upstream(Action::Pull, &b));
        assert!(!policy.asks_upstream(Action::Pull, &a));
        assert!(!policy.asks_upstream(Action::Warm, &b));
        assert!(!policy.is_open());
        assert!(Policy::new(&[]).is_open());
    }

    #[test]
    fn malformed_rules_are_refused() {
        for text in ["", "everyone", "user", "user:", "upstreams"] {
            assert!(text.parse::<Who>().is_err(), "{text:?}");
        }
        for text in ["", "nginx", "/a", "*", "A/b", "a b/c"] {
            assert!(text.parse::<ImagePattern>().is_err(), "{text:?}");
        }
        let rule = |images: &str| AccessRule {
            who: vec![Who::Upstream],
            may: vec![Action::Pull],
            images: vec![images.parse().unwrap()],
        };
        assert!(rule("private/**").names_its_upstreams());
        for images in ["**", "*/a", "priv*/**", "**/a"] {
            assert!(!rule(images).names_its_upstreams(), "{images}");
        }
    }
}
