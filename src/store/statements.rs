//! The signed statements on converted images, by the digest of the converted manifest.
//!
//! A record names artifacts that are ordinary objects of the store. Losing it only costs another
//! signature.

use serde::{Deserialize, Serialize};

use super::Store;
use super::error::Error;
use super::key::Key;
use crate::oci::{Descriptor, Digest};

/// Most statements on one image. With a new key the oldest is forgotten.
const MAX_STATEMENTS: usize = 8;

/// A signed statement on a converted image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredStatement {
    /// The name of the key that signed it.
    pub key: String,
    /// Its artifact, as it is listed among the referrers of the image.
    pub listed: Descriptor,
    /// The objects that the artifact needs, itself included.
    pub objects: Vec<Digest>,
}

/// The statements on one converted image, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct StatementRecord {
    pub(super) statements: Vec<StoredStatement>,
}

impl StatementRecord {
    pub(super) fn objects(&self) -> impl Iterator<Item = &Digest> {
        self.statements
            .iter()
            .flat_map(|statement| &statement.objects)
    }

    /// Adds a statement. Another one by the same key is replaced.
    fn add(&mut self, statement: StoredStatement) {
        self.statements.retain(|other| other.key != statement.key);
        if self.statements.len() >= MAX_STATEMENTS {
            self.statements.remove(0);
        }
        self.statements.push(statement);
    }
}

impl Store {
    /// The statements on the image `converted` of which all objects are there.
    pub async fn statements(&self, converted: &Digest) -> Result<Vec<StoredStatement>, Error> {
        let mut whole = Vec::new();
        for statement in self.statement_record(converted).await?.statements {
            let mut is_whole = true;
            for digest in &statement.objects {
                is_whole &= self.locate(digest).await?.is_some();
            }
            if is_whole {
                whole.push(statement);
            }
        }
        Ok(whole)
    }

    /// Records a statement on the image `converted`. The objects of the statement must be stored.
    ///
    /// If two replicas sign at the same time, one of the two statements counts.
    pub async fn put_statement(
        &self,
        converted: &Digest,
        statement: StoredStatement,
    ) -> Result<(), Error> {
        let mut record = self.statement_record(converted).await?;
        record.add(statement);
        self.put_record(&Key::StatementRecord(converted.clone()), &record)
            .await
    }

    async fn statement_record(&self, converted: &Digest) -> Result<StatementRecord, Error> {
        let key = Key::StatementRecord(converted.clone());
        Ok(self.record(&key).await?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    async fn statement(store: &Store, key: &str) -> StoredStatement {
        let object = store.put("text/plain", Bytes::from(key.to_owned())).await;
        let digest = object.unwrap().digest;
        StoredStatement {
            key: key.to_owned(),
            listed: Descriptor::plain("text/plain".to_owned(), digest.clone(), 1),
            objects: vec![digest],
        }
    }

    #[tokio::test]
    async fn each_key_has_one_statement_and_the_oldest_are_forgotten() {
        let store = Store::in_memory();
        let image = Digest::sha256_of(b"image");
        for number in [0, 1, 2, 1] {
            let statement = statement(&store, &format!("key {number}")).await;
            store.put_statement(&image, statement).await.unwrap();
        }
        let keys = |found: Vec<StoredStatement>| -> Vec<String> {
            found.into_iter().map(|statement| statement.key).collect()
        };
        let found = store.statements(&image).await.unwrap();
        assert_eq!(keys(found), ["key 0", "key 2", "key 1"]);
        for number in 3..9 {
            let statement = statement(&store, &format!("key {number}")).await;
            store.put_statement(&image, statement).await.unwrap();
        }
        let found = keys(store.statements(&image).await.unwrap());
        assert_eq!((found.len(), found[0].as_str()), (MAX_STATEMENTS, "key 2"));
    }

    #[tokio::test]
    async fn a_statement_without_its_objects_is_not_there() {
        let store = Store::in_memory();
        let image = Digest::sha256_of(b"image");
        let mut statement = statement(&store, "key").await;
        statement.objects.push(Digest::sha256_of(b"gone"));
        store.put_statement(&image, statement).await.unwrap();
        assert_eq!(store.statements(&image).await.unwrap(), []);
    }
}
