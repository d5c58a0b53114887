//! The two lines that a bare start prints, as they stand, with the tool that they name.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use super::common::{Process, Relay, SOON, command, wait_until};

/// A shell that runs a printed line.
struct Terminal {
    shell: Child,
    lines: Receiver<String>,
}

impl Terminal {
    fn run(line: &str) -> Self {
        let mut shell = Command::new("sh");
        // npx may fetch nothing here: what is not installed skips the test.
        shell.args(["-c", line]).env("npm_config_yes", "false");
        let piped = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = piped.spawn().unwrap();
        let (told, lines) = channel();
        let out = BufReader::new(shell.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = told.send(line);
            }
        });
        Self { shell, lines }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.shell.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// What follows the first mark of a message that came.
    async fn message(&self) -> String {
        let mut seen = None;
        wait_until("a message in the terminal", SOON, async || {
            let line = self.lines.try_recv().ok();
            seen = line.and_then(|line| Some(line[line.find('{')?..].to_owned()));
            seen.is_some()
        })
        .await;
        seen.unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // At the end of its input it ends by itself.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

#[tokio::test]
async fn the_two_lines_of_a_bare_start_work_as_they_stand() {
    let wscat = Command::new("npx").args(["--no-install", "wscat", "--version"]).output();
    if !wscat.is_ok_and(|said| said.status.success()) {
        return eprintln!("SKIPPED: wscat is not installed (npm install --global wscat)");
    }
    let mut process = Process::spawn(command::<&str>(&[]));
    let mut ended = false;
    wait_until("the lines or an end", SOON, async || {
        ended = process.has_exited();
        ended || process.stdout().contains("npx fetches it")
    })
    .await;
    if ended {
        return eprintln!("SKIPPED: port 8080 is taken");
    }
    let relay = Relay::listening(process).await;
    let said = relay.stdout();
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("npx wscat")).collect();
    let [binary, phone] = lines[..] else { panic!("{said}") };
    let mut binary = Terminal::run(binary);
    relay.wait_for_counts(1, 0).await;
    let mut phone = Terminal::run(phone);
    relay.wait_for_counts(1, 1).await;
    phone.type_line("{\"hello\":1}");
    let envelope = binary.message().await;
    assert!(envelope.ends_with("\"frame\":{\"hello\":1}}"), "{envelope}");
    binary.type_line(&envelope);
    assert_eq!(phone.message().await, "{\"hello\":1}");
    drop((binary, phone));
}
