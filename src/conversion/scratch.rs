//! The store of one conversion: a temporary one, or the one that the command line names.

use std::path::Path;

use tempfile::TempDir;

use crate::failure::Failure;
use crate::store::{self, Store};

/// A store that lasts as long as a conversion, or a lasting one.
pub(super) struct ScratchStore {
    pub(super) store: Store,
    /// Removed when dropped.
    _temporary: Option<TempDir>,
}

impl ScratchStore {
    /// Opens the store at `named`, or creates a temporary one, with the settings of `config`. The
    /// temporary store is created in `folder`, if given.
    pub(super) async fn open(
        config: &store::Config,
        named: Option<&str>,
        folder: Option<&Path>,
    ) -> Result<Self, Failure> {
        let at = |location: &str| store::Config {
            location: location.to_owned(),
            ..config.clone()
        };
        if let Some(location) = named {
            let store = Store::open(&at(location))
                .await
                .map_err(Failure::from_error)?;
            return Ok(Self {
                store,
                _temporary: None,
            });
        }
        let temporary = temporary_folder(folder)?;
        let location = temporary.path().to_str();
        let location =
            location.ok_or_else(|| Failure::new("path of the temporary folder is not UTF-8"))?;
        let store = Store::scratch(&at(location)).map_err(Failure::from_error)?;
        Ok(Self {
            store,
            _temporary: Some(temporary),
        })
    }
}

/// Creates a temporary folder, next to the destination if that is on this machine, because the file
/// system of the destination has the space.
fn temporary_folder(beside: Option<&Path>) -> Result<TempDir, Failure> {
    let builder = &mut tempfile::Builder::new();
    let builder = builder.prefix(".starlift-");
    let folder = match beside {
        Some(folder) if folder.as_os_str().is_empty() => builder.tempdir_in("."),
        Some(folder) => std::fs::create_dir_all(folder).and_then(|()| builder.tempdir_in(folder)),
        None => builder.tempdir(),
    };
    folder.map_err(Failure::when("temporary folder cannot be created"))
}
