//! Copies a snapshot, checking everything on the way, and perhaps changing the form of its RAM. Called by `store`.

use std::path::Path;

use super::{FinishedSave, Form, Save, Snapshot};
use crate::error::Result;

impl Snapshot {
    /// Copies everything to `dir`, which is missing or empty. On failure it is empty again.
    ///
    /// # Errors
    /// `InvalidArgument` when the snapshot was changed, `ResourceExhausted` on a full disk.
    pub fn copy_to(&self, dir: &Path, form: Form) -> Result<FinishedSave> {
        let mut save = Save::begin(dir, form)?;
        match self.fill(&mut save) {
            Ok(state) => save.finish(self.manifest().contents.clone(), &state),
            Err(error) => Err(error.with_cleanup(save.abort().err().into_iter().collect())),
        }
    }

    fn fill(&self, save: &mut Save) -> Result<Vec<String>> {
        let state = self.state_into(save.dir())?;
        save.fill_ram(self.manifest().contents.machine.memory, |file| self.ram_to(file))?;
        Ok(state)
    }
}
