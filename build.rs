//! Fails early, in one sentence, when the `openblas` feature is on and no system OpenBLAS is there to link.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
    println!("cargo::rerun-if-env-changed=LIBRARY_PATH");
    let checked = env::var_os("CARGO_FEATURE_OPENBLAS").is_some()
        && env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux")
        && env::var("HOST") == env::var("TARGET")
        && env::var_os("DOCS_RS").is_none();
    if checked && !known_to_pkg_config() && !known_to_linker() {
        println!(
            "cargo::error=OpenBLAS was not found: install it (Debian and Ubuntu: `apt-get install libopenblas-dev`; \
             Fedora: `dnf install openblas-devel`; Arch: `pacman -S openblas`) or build with `--no-default-features`."
        );
    }
}

fn known_to_pkg_config() -> bool {
    Command::new("pkg-config").args(["--exists", "openblas"]).status().is_ok_and(|status| status.success())
}

/// `cc -print-file-name=X` answers with a path when the linker would find X, and with X itself when not.
fn known_to_linker() -> bool {
    ["libopenblas.so", "libopenblas.a"].iter().any(|name| {
        Command::new("cc")
            .arg(format!("-print-file-name={name}"))
            .output()
            .is_ok_and(|answer| Path::new(String::from_utf8_lossy(&answer.stdout).trim()).is_absolute())
    })
}
