//! Command lines of commands that have flags of their own.

use super::Exit;
use clap::error::ErrorKind;
use std::ffi::OsString;

/// What `--help` or `--version` of the command line `T` is answered, if either is among `args`.
pub(crate) fn help<T: clap::Parser>(args: Vec<OsString>) -> Option<String> {
    let error = T::try_parse_from(args).err()?;
    let is_asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    is_asked.then(|| error.to_string().trim_end().to_owned())
}

/// Reads `args` as the command line `T`. A refusal says, as `hint` does, where its flags are listed.
pub(crate) fn parse<T: clap::Parser>(args: Vec<OsString>, hint: &str) -> Result<T, Exit> {
    T::try_parse_from(args).map_err(|error| {
        // What clap says in several lines, said in one.
        let text = error.to_string();
        let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
        let said = lines.collect::<Vec<_>>().join(" ");
        Exit::refusal(&format!("{}; {hint}", said.trim_start_matches("error: ")))
    })
}
