//! Loads the kernel modules that the initramfs brings along.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::error::{Context as _, Error, Kind, Result};

/// Loads what `directory/order` lists, a name per line, each from `directory/<name>.ko`. A kernel that has a driver
/// built in, or no hardware for it, refuses the module: that is logged, and what needs it will say so. Without the
/// file nothing is loaded.
///
/// # Errors
/// If the list names a module that is no plain file name or is not there: then the initramfs was built wrongly.
pub(super) fn load_all(directory: &Path) -> Result<()> {
    let order = directory.join("order");
    let names = match fs::read_to_string(&order) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(|| format!("Could not read {}", order.display())),
    };
    for name in names.lines().map(str::trim).filter(|name| !name.is_empty()) {
        if name.contains('/') {
            let text = format!("{} lists {name:?}, which is no module's name", order.display());
            return Err(Error::new(Kind::InvalidArgument, text));
        }
        let path = directory.join(format!("{name}.ko"));
        let module = File::open(&path).context(|| format!("Could not open the module {}", path.display()))?;
        match finit_module(&module, &CString::default(), ModuleInitFlags::empty()) {
            Ok(()) => log::debug!("Loaded module {name}"),
            Err(Errno::EEXIST) => log::debug!("Module {name} is in the kernel already"),
            Err(error) => log::warn!("Could not load module {name}: {error}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_the_initramfs_does_not_keep_is_an_error_that_names_the_module() {
        let directory = tempfile::tempdir().unwrap();
        load_all(directory.path()).unwrap();
        fs::write(directory.path().join("order"), "\noverlay\n").unwrap();
        let error = load_all(directory.path()).unwrap_err().chain();
        assert!(error.contains("overlay.ko"), "{error}");
        fs::write(directory.path().join("order"), "../evil\n").unwrap();
        let error = load_all(directory.path()).unwrap_err().chain();
        assert!(error.contains("../evil"), "{error}");
    }

    #[test]
    fn what_the_kernel_refuses_is_done_without() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("order"), "nonsense\n").unwrap();
        fs::write(directory.path().join("nonsense.ko"), "not a module").unwrap();
        load_all(directory.path()).unwrap();
    }
}
