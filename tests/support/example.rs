//! The programs in `examples`, as tests run them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

/// The example of that name, which Cargo builds before it runs all tests, into a folder beside that of the test executables.
///
/// Tests that are run by name find what was built before, so one that is older than its sources is refused.
pub fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let path =
        test.ancestors().nth(2).unwrap().join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    let build =
        "`cargo build --examples`, with the profile and features of the tests, builds it, and so does `cargo test`";
    assert!(path.exists(), "{} is missing: {build}", path.display());
    let built = modified(&path).unwrap();
    // What Cargo names beside it: the example, a colon, and the sources.
    let sources = fs::read_to_string(path.with_extension("d")).unwrap_or_default();
    let newer =
        sources.split_whitespace().skip(1).find(|file| modified(file.as_ref()).is_some_and(|time| time > built));
    assert_eq!(newer, None, "{} is older than this: {build}", path.display());
    Command::new(path)
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|file| file.modified()).ok()
}
