//! What is made of the command line for people: `pyrycode-relay completions SHELL` and
//! `pyrycode-relay man`.

use super::balancer;
use crate::config::{Exit, PROGRAM, command_line};
use clap_complete::Shell;
use std::ffi::OsString;

/// What man(1) and whatis(1) show beside the name; one line.
const WHATIS: &str = "WebSocket relay between a pyry daemon and its phones";

fn whole() -> clap::Command {
    command_line(balancer::commands()).arg_required_else_help(false)
}

/// What completes the command line in the shell that is named; `args` begin with the program's name.
///
/// # Errors
///
/// A refusal, where no shell is named.
pub fn completions(args: &[OsString]) -> Result<String, Exit> {
    let shells = "bash, zsh, fish, elvish or powershell";
    let named = match args {
        [_, shell] => shell.to_str().and_then(|shell| shell.parse::<Shell>().ok()),
        _ => None,
    };
    let Some(shell) = named else {
        return Err(Exit::refusal(&format!("name one shell: {PROGRAM} completions {shells}")));
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut whole(), PROGRAM, &mut text);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The manual page of the program, or of the command that `args` name behind the program's name, as
/// man(1) reads it.
///
/// # Errors
///
/// A refusal, where there is no such command.
pub fn man(args: &[OsString]) -> Result<String, Exit> {
    let mut line = whole();
    // Of the two, a page has the long one in its description only.
    if let Some(about) = line.get_about().cloned() {
        line = line.about(WHATIS).long_about(about);
    }
    line.build();
    let page = match args {
        [_] => Some(line),
        [_, name] => name.to_str().and_then(|name| line.find_subcommand(name)).cloned(),
        _ => None,
    };
    let Some(page) = page else {
        return Err(Exit::refusal(&format!(
            "it is written `{PROGRAM} man`, or `{PROGRAM} man COMMAND` for a command's own page"
        )));
    };
    let mut text = Vec::new();
    // Into memory: nothing of it can fail.
    clap_mangen::Man::new(page)
        .section("8")
        .render(&mut text)
        .map_err(|error| Exit::refusal(&error.to_string()))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
