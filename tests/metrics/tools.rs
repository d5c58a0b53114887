//! What is told and brought along, as Prometheus's own tool judges it.

use super::common::certs::Folder;
use super::common::{Raw, run};
use super::{get, meet, start};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whether promtool is here. Where it is not, that is said.
fn has_promtool() -> bool {
    let there = Command::new("promtool").arg("--version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: promtool is not installed (Debian: apt install prometheus)");
    }
    there
}

fn check_rules(file: impl AsRef<Path>) {
    let checked =
        Command::new("promtool").args(["check", "rules"]).arg(file.as_ref()).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[tokio::test]
async fn promtool_finds_nothing_to_object_to() {
    if !has_promtool() {
        return;
    }
    let (relay, addr) = start(&[]).await;
    let mut binary = Raw::binary(&relay, "id").await;
    let _phone = meet(&relay, &mut binary, "id").await;
    let text = get(addr, "/metrics").await.body;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(&text).unwrap();
    let said = promtool.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success() && complaints.is_empty(), "{complaints}");
}

#[tokio::test]
async fn promtool_understands_every_query_of_the_dashboard() {
    if !has_promtool() {
        return;
    }
    let dashboard: serde_json::Value =
        serde_json::from_str(&run(&["grafana"]).await.stdout).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let rules: Vec<_> = targets
        .enumerate()
        .map(|(number, target)| {
            let query = target["expr"].as_str().unwrap();
            // What Grafana puts in.
            let query = query.replace("$instance", ".*").replace("$__rate_interval", "1m");
            assert!(!query.contains('$'), "{query}");
            serde_json::json!({ "record": format!("query:{number}"), "expr": query })
        })
        .collect();
    assert!(rules.len() > 20);
    let groups = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let folder = Folder::new();
    // JSON is YAML.
    check_rules(folder.write("dashboard.yml", groups.to_string()));
}
