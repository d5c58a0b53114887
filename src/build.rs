//! Which commit is built: PYRYCODE_RELAY_COMMIT, where a packager says so, or what the checkout is
//! at, or `unknown`. Read from git's files, so that git need not be installed, and so that cargo
//! builds anew only when another commit is checked out.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Of a commit's hexadecimal digits, so many are told.
const SHORT: usize = 12;

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    println!("cargo::rerun-if-env-changed=PYRYCODE_RELAY_COMMIT");
    let told = env::var("PYRYCODE_RELAY_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = told.or_else(checked_out).unwrap_or_else(|| "unknown".to_owned());
    // As build metadata of a version may be written (semver.org, item 10).
    assert!(
        commit.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.')),
        "PYRYCODE_RELAY_COMMIT may hold letters, digits, dots and dashes"
    );
    println!("cargo::rustc-env=PYRYCODE_RELAY_COMMIT={commit}");
}

/// The commit that this folder is a checkout of (gitrepository-layout(5)).
fn checked_out() -> Option<String> {
    let checkout = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
    let git = folder(&checkout.join(".git"))?;
    let head = read(&git.join("HEAD"))?;
    let Some(name) = head.strip_prefix("ref: ") else { return short(&head) };
    // A worktree shares all but its HEAD with the repository.
    let shared = read(&git.join("commondir")).map_or(git.clone(), |path| git.join(path));
    if let Some(commit) = read(&shared.join(name)) {
        return short(&commit);
    }
    let packed = read(&shared.join("packed-refs"))?;
    let is_it = |line: &&str| line.split(' ').nth(1) == Some(name);
    short(packed.lines().find(is_it)?)
}

/// Where git keeps its files: `.git` itself, or what it leads to.
fn folder(git: &Path) -> Option<PathBuf> {
    if git.is_dir() {
        return Some(git.to_owned());
    }
    let text = fs::read_to_string(git).ok()?;
    Some(git.parent()?.join(text.strip_prefix("gitdir: ")?.trim()))
}

/// What a file says, which cargo looks at from now on.
fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    println!("cargo::rerun-if-changed={}", path.display());
    Some(text.trim().to_owned())
}

fn short(commit: &str) -> Option<String> {
    let digits = commit.get(..SHORT)?;
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| digits.to_owned())
}
