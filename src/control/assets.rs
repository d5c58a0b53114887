//! What the binary brings along for the tools around it.

/// A Grafana dashboard, as JSON to import.
pub const GRAFANA: &str = include_str!("assets/dashboard.json");
/// Alert rules for Prometheus, as YAML.
pub const ALERTS: &str = include_str!("assets/alerts.yml");
/// A hardened systemd unit.
pub const SYSTEMD_UNIT: &str = include_str!("assets/pyrycode-relay.service");
/// A container file.
pub const DOCKERFILE: &str = include_str!("assets/Dockerfile");
/// A seccomp profile for containers: Docker's default (github.com/moby/profiles/seccomp v0.3.0, under
/// the Apache License 2.0, of which `assets/seccomp.LICENSE` is the text), and the three calls of
/// io_uring.
pub const SECCOMP: &str = include_str!("assets/seccomp.json");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::metrics::snapshot::{Process, exposition};

    /// The metrics that a text asks for.
    fn names(text: &str) -> Vec<&str> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        text.split(|c| !is_name(c))
            .filter(|word| word.starts_with("pyrycode_relay_") || word.starts_with("process_"))
            .collect()
    }

    #[test]
    fn what_rules_and_panels_ask_for_is_there() {
        let process = Process {
            certificate_expires_at_seconds: Some(1),
            allowed_server_ids: Some(1),
            worker_cpu_seconds: vec![0.0],
            ..Process::default()
        };
        let told = exposition(&Metrics::new(1), &process);
        for (what, text) in [("alerts", ALERTS), ("dashboard", GRAFANA)] {
            let names = names(text);
            assert!(names.len() > 10, "{what}");
            for name in names {
                let sample = format!("\n{name}");
                let found = told.match_indices(&sample).any(|(at, _)| {
                    matches!(told.as_bytes().get(at + sample.len()), Some(b' ' | b'{'))
                });
                assert!(found, "{what} asks for {name}, which nobody tells");
            }
        }
    }

    #[test]
    fn several_relays_are_told_apart_or_added_up() {
        let dashboard: serde_json::Value = serde_json::from_str(GRAFANA).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let query = target["expr"].as_str().unwrap();
                let legend = target["legendFormat"].as_str().unwrap_or_default();
                let aggregates = ["sum(", "min(", "max(", "histogram_quantile("];
                let adds_up = aggregates.iter().any(|name| query.starts_with(name))
                    || (query.starts_with("sum by (") && !query.starts_with("sum by (instance)"));
                assert!(adds_up || legend.contains("{{instance}}"), "{query}");
                let metrics = query.matches("pyrycode_relay_").count();
                let metrics = metrics + query.matches("process_").count();
                assert!(query.matches("instance=~\"$instance\"").count() >= metrics, "{query}");
            }
        }
        // An alert is about one relay, whose name its summary says.
        for alert in ALERTS.split("- alert: ").skip(1) {
            assert!(alert.contains("{{ $labels.instance }}"), "{alert}");
            let expression = alert.lines().find(|line| line.trim().starts_with("expr:")).unwrap();
            let sums = expression.matches("sum by (").count();
            assert_eq!(expression.matches("sum by (instance, job").count(), sums, "{expression}");
        }
    }

    #[test]
    fn the_profile_denies_by_default_and_allows_what_the_relay_calls() {
        let profile: serde_json::Value = serde_json::from_str(SECCOMP).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let allowed = |name: &str| {
            profile["syscalls"].as_array().unwrap().iter().any(|group| {
                let names = group["names"].as_array().unwrap();
                let unconditional = group.get("includes").is_none_or(|includes| {
                    includes.as_object().is_some_and(serde_json::Map::is_empty)
                });
                group["action"] == "SCMP_ACT_ALLOW"
                    && unconditional
                    && names.iter().any(|other| other == name)
            })
        };
        for call in ["io_uring_setup", "io_uring_enter", "io_uring_register", "accept4"] {
            assert!(allowed(call), "{call}");
        }
        assert!(!allowed("mount") && !allowed("bpf"));
    }

    #[test]
    fn the_dashboard_is_json_with_a_place_for_each_panel() {
        let dashboard: serde_json::Value = serde_json::from_str(GRAFANA).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        assert!(panels.len() > 10);
        for panel in panels {
            assert!(panel["gridPos"]["w"].as_u64().unwrap() <= 24, "{}", panel["title"]);
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{}", panel["title"]);
        }
    }
}
