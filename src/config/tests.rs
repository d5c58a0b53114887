//! The whole command line, on a machine that the test makes up.

use clap::error::ErrorKind;

use super::*;

const GIB: u64 = 1 << 30;

fn machine() -> Machine {
    Machine {
        cpus: vec![0, 2, 3],
        parallelism: 3,
        descriptors: 20_000,
        memory_limit_bytes: Some(GIB),
    }
}

fn parse_on(machine: Machine, args: &[&str]) -> Result<Config, Exit> {
    let args = [PROGRAM].iter().chain(args).map(OsString::from);
    let given = sources::gather(args, [])?;
    let mut config = Config::from_given(given, &Environment::default(), machine)?;
    // What a value is worth does not depend on where it came from.
    config.origins.clear();
    Ok(config)
}

fn parse(args: &[&str]) -> Result<Config, Exit> {
    parse_on(machine(), args)
}

fn refusal(args: &[&str]) -> String {
    let exit = parse(args).unwrap_err();
    assert_eq!(exit.code, 2, "{args:?}");
    let message = exit.to_string();
    assert!(message.starts_with("pyrycode-relay: "), "{args:?}: {message}");
    assert!(!message.contains(char::is_control), "{args:?}: {message}");
    message
}

#[test]
fn a_secret_is_not_shown() {
    assert_eq!(format!("{:?}", Some(Secret("s3cret".into()))), "Some(Secret)");
}

#[test]
fn bare_run_takes_the_documented_defaults() {
    let config = parse(&[]).unwrap();
    let expected = Config {
        insecure: Some(Listen { addr: "127.0.0.1:8080".parse().unwrap(), is_default: true }),
        https: None,
        metrics_listen: Some(MetricsListen {
            addr: "127.0.0.1:9090".parse().unwrap(),
            is_default: true,
        }),
        rate_limit: Some(RateLimit { burst: 20, refill_ms: 6000 }),
        handshake_rate: Some(RateLimit { burst: 60, refill_ms: 1000 }),
        control_socket: None,
        block: Arc::default(),
        allowed: None,
        verify_url: None,
        new_connections_rate: None,
        drain_spread: Duration::ZERO,
        capacity: Capacity {
            by_descriptors: 19_464,
            by_memory: 325_920,
            visitors: 5000,
            sockets: 19_720,
        },
        max_connections: 19_464,
        max_connections_per_address: Some(4866),
        trust_x_forwarded_for: Arc::default(),
        proxy_protocol_from: Arc::default(),
        production: false,
        may_be_one_of_many: false,
        single_instance: false,
        one_of_many: false,
        fcm_credentials: None,
        fcm_endpoints: FcmEndpoints::default(),
        workers: 3,
        ring_features: RingFeatures::ALL,
        cpus: vec![0, 2, 3],
        memory_budget_bytes: GIB / 4,
        memory_limit_bytes: GIB,
        limits: Limits::default(),
        drain_timeout: Duration::from_secs(10),
        file: None,
        origins: BTreeMap::new(),
        unknown_variables: Vec::new(),
        log_format: LogFormat::Text,
        log_level: Level::INFO,
    };
    assert_eq!(config, expected);
}

#[test]
fn limits_have_the_documented_defaults() {
    assert_eq!(
        Limits::default(),
        Limits {
            max_phones: 16,
            token_header: TokenHeader::Required,
            server_id_rate: None,
            verify: Verify { is_on: false, timeout_ms: 3_000, on_failure: OnFailure::Deny },
            grace_ms: 30_000,
            probe_timeout_ms: 10_000,
            heartbeat_interval_ms: 30_000,
            heartbeat_timeout_ms: 30_000,
            header_timeout_ms: 5_000,
            message_timeout_ms: 30_000,
            write_timeout_ms: 10_000,
            close_timeout_ms: 5_000,
        }
    );
}

#[test]
// One table.
#[allow(clippy::too_many_lines)]
fn every_flag_sets_its_own_field_in_every_spelling() {
    type Change = fn(&mut Config);
    let table: &[(&str, &str, Change)] = &[
        ("insecure-listen", ":80", |c| {
            c.insecure = Some(Listen { addr: "[::]:80".parse().unwrap(), is_default: false });
        }),
        ("insecure-listen", "127.0.0.1:8080", |c| {
            c.insecure = Some(Listen { addr: DEFAULT_LISTEN, is_default: false });
        }),
        ("domain", "Relay.example.com", |c| {
            c.insecure = None;
            c.capacity.by_memory = 130_389;
            c.https = Some(Https {
                listen: "[::]:443".parse().unwrap(),
                domain: Some("relay.example.com".to_owned()),
                proxy_protocol: false,
                certificate: CertificateSource::Acme {
                    cache: "/var/lib/pyrycode-relay/certificates".into(),
                    http_listen: Some("[::]:80".parse().unwrap()),
                    directory: DEFAULT_ACME_DIRECTORY.to_owned(),
                    ca: None,
                },
            });
        }),
        ("metrics-listen", "", |c| c.metrics_listen = None),
        ("metrics-listen", "[::1]:0", |c| {
            let addr = "[::1]:0".parse().unwrap();
            c.metrics_listen = Some(MetricsListen { addr, is_default: false });
        }),
        ("rate-limit", "off", |c| c.rate_limit = None),
        ("rate-limit", "3/200ms", |c| {
            c.rate_limit = Some(RateLimit { burst: 3, refill_ms: 200 });
        }),
        ("handshake-rate", "off", |c| c.handshake_rate = None),
        ("handshake-rate", "7/30s", |c| {
            c.handshake_rate = Some(RateLimit { burst: 7, refill_ms: 30_000 });
        }),
        ("max-connections", "100", |c| {
            c.max_connections = 100;
            c.max_connections_per_address = Some(25);
        }),
        ("max-connections", "10", |c| {
            c.max_connections = 10;
            c.max_connections_per_address = Some(16);
        }),
        ("max-connections-per-address", "off", |c| c.max_connections_per_address = None),
        ("max-connections-per-address", "7", |c| c.max_connections_per_address = Some(7)),
        ("trust-x-forwarded-for", "10.0.0.0/8,::1", |c| {
            c.trust_x_forwarded_for =
                ["10.0.0.0/8", "::1/128"].map(|net| net.parse().unwrap()).into();
        }),
        ("proxy-protocol-from", "127.0.0.0/8", |c| {
            c.proxy_protocol_from = ["127.0.0.0/8".parse().unwrap()].into();
        }),
        ("workers", "7", |c| {
            c.workers = 7;
            c.capacity.by_descriptors = 19_432;
            c.capacity.sockets = 19_688;
            c.max_connections = 19_432;
            c.max_connections_per_address = Some(4858);
        }),
        ("io-uring-without", "no-iowait", |c| c.ring_features.no_iowait = false),
        ("memory-budget", "64MiB", |c| {
            c.memory_budget_bytes = 64 << 20;
            c.capacity.by_memory = 407_826;
        }),
        ("max-phones", "2", |c| c.limits.max_phones = 2),
        ("grace", "1s", |c| c.limits.grace_ms = 1000),
        ("probe-timeout", "2s", |c| c.limits.probe_timeout_ms = 2000),
        ("heartbeat-interval", "3s", |c| c.limits.heartbeat_interval_ms = 3000),
        ("heartbeat-timeout", "4s", |c| c.limits.heartbeat_timeout_ms = 4000),
        ("header-timeout", "6s", |c| c.limits.header_timeout_ms = 6000),
        ("message-timeout", "7s", |c| c.limits.message_timeout_ms = 7000),
        ("write-timeout", "8s", |c| c.limits.write_timeout_ms = 8000),
        ("close-timeout", "9s", |c| c.limits.close_timeout_ms = 9000),
        ("drain-timeout", "0s", |c| c.drain_timeout = Duration::ZERO),
        ("log-format", "json", |c| c.log_format = LogFormat::Json),
        ("log-level", "debug", |c| c.log_level = Level::DEBUG),
    ];
    for &(flag, value, change) in table {
        let mut expected = parse(&[]).unwrap();
        change(&mut expected);
        for dashes in ["-", "--"] {
            let name = format!("{dashes}{flag}");
            let joined = format!("{name}={value}");
            assert_eq!(parse(&[&joined]), Ok(expected.clone()), "{joined}");
            assert_eq!(parse(&[&name, value]), Ok(expected.clone()), "{name} {value}");
        }
    }
}

#[test]
fn refusals_say_which_flag_and_how_to_mend_it() {
    let table: &[(&[&str], &str)] = &[
        (&["--grace", "30"], "--grace: \"30\" has no unit; write 30s or 500ms"),
        (&["-grace=30"], "--grace: \"30\" has no unit; write 30s or 500ms"),
        (
            &["--grace", "-5s"],
            "--grace: \"-5s\" is not a duration of 0 or more; write 30s or 500ms",
        ),
        (&["--grace", "--workers"], "--grace: \"--workers\" is not a duration"),
        (&["-grace", "-workers"], "--grace: \"-workers\" is not a duration"),
        (&["--grace=0s"], "--grace: \"0s\" is too short; it must be at least 1ms"),
        (&["--grace="], "--grace: the value is empty; write 30s or 500ms"),
        (&["--grace"], "--grace: it needs a value: DURATION"),
        (&["--grace=48h"], "--grace: \"48h\" is too long; it must be at most 24h"),
        (&["--probe-timeout=0s"], "--probe-timeout: \"0s\" is too short"),
        (&["--heartbeat-interval=0s"], "--heartbeat-interval: \"0s\" is too short"),
        (&["--heartbeat-timeout=0s"], "--heartbeat-timeout: \"0s\" is too short"),
        (&["--header-timeout=0s"], "--header-timeout: \"0s\" is too short"),
        (&["--message-timeout=0s"], "--message-timeout: \"0s\" is too short"),
        (&["--write-timeout=0s"], "--write-timeout: \"0s\" is too short"),
        (&["--close-timeout=0s"], "--close-timeout: \"0s\" is too short"),
        (&["--drain-timeout=10"], "--drain-timeout: \"10\" has no unit"),
        (&["--max-phones=0"], "--max-phones: \"0\" is too few; it must be at least 1"),
        (&["--max-phones=65537"], "--max-phones: \"65537\" is too large"),
        (&["--workers=0"], "--workers: \"0\" is too few; it must be at least 1"),
        (&["--workers=1025"], "--workers: \"1025\" is too large; it must be at most 1024"),
        (&["--workers", "-1"], "--workers: \"-1\" is not a number"),
        (&["--memory-budget=256M"], "write 256MiB or 256MB"),
        (&["--memory-budget=1KiB"], "--memory-budget: \"1KiB\" is too little"),
        (&["--memory-budget=2GiB"], "--memory-budget: 2048MiB is more than the 1024MiB"),
        (
            &["--memory-budget=1MiB", "--workers=4"],
            "--memory-budget: 1MiB is too little for 4 workers; give it at least 4MiB, or lower \
             --workers",
        ),
        (&["--insecure-listen=8080"], "--insecure-listen: \"8080\" is not host:port; write"),
        (&["--insecure-listen="], "--insecure-listen: \"\" is not host:port; write"),
        (&["--insecure-listen"], "--insecure-listen: it needs a value: HOST:PORT"),
        (&["--log-format=xml"], "--log-format: \"xml\" is not one of text, json"),
        (&["--log-format"], "--log-format: it needs a value: text, json"),
        (&["--log-level=loud"], "--log-level: \"loud\" is not one of error, warn, info, debug"),
        (&["--grce=3s"], "--grce is not a flag of this relay; did you mean --grace? "),
        (&["-grce=3s"], "--grce is not a flag of this relay; did you mean --grace? "),
        (&["--subprotocol=x"], "--subprotocol is not a flag of this relay; "),
        (&["-x"], "-x is not a flag of this relay; "),
        (&["serve"], "\"serve\" is not a flag; `pyrycode-relay --help` lists them all"),
        (&["--", "--grace=1s"], "--grace=1s is not a flag"),
        (&["a\nb"], "\"a\\nb\" is not a flag"),
        (&["--a\nb\u{1b}[31m"], "--a\\nb\\u{1b}[31m is not a flag"),
        (&["--version=true"], "'true'"),
    ];
    for (args, says) in table {
        let message = refusal(args);
        assert!(message.contains(says), "{args:?}: {message}");
    }
}

#[test]
fn arguments_that_are_not_text_are_refused() {
    use std::os::unix::ffi::OsStringExt as _;
    for arg in [&b"--grace=\xff"[..], b"\xff", b"-\xff=1"] {
        let args = [PROGRAM.into(), OsString::from_vec(arg.to_vec())];
        let exit = Flags::parse(args).unwrap_err();
        assert_eq!(exit.code, 2, "{exit}");
        assert!(!exit.to_string().contains(char::is_control), "{exit}");
    }
}

#[test]
fn last_of_a_repeated_flag_counts() {
    assert_eq!(parse(&["--grace=1s", "-grace", "2s"]).unwrap().limits.grace_ms, 2000);
}

#[test]
fn budget_follows_the_memory_limit_and_the_workers() {
    let budget = |limit: Option<u64>, workers: &str| {
        let machine = Machine { memory_limit_bytes: limit, ..machine() };
        parse_on(machine, &["--workers", workers]).map(|config| config.memory_budget_bytes)
    };
    assert_eq!(budget(Some(GIB), "1"), Ok(GIB / 4));
    assert_eq!(budget(None, "1"), Ok(64 << 20));
    assert_eq!(budget(Some(2 << 20), "1"), Ok(1 << 20));
    assert_eq!(budget(Some(1 << 19), "1"), Ok(1 << 20));
    assert_eq!(budget(Some(GIB), "1024"), Ok(GIB));
    let message = budget(Some(16 << 20), "64").unwrap_err().reason;
    assert!(message.contains("16MiB is too little for 64 workers"), "{message}");
}

#[test]
fn workers_default_to_what_the_machine_leaves_within_bounds() {
    for (parallelism, workers) in [(0, 1), (1, 1), (8, 8), (4096, 1024)] {
        let config = parse_on(Machine { parallelism, ..machine() }, &[]).unwrap();
        assert_eq!(config.workers, workers);
    }
}

#[test]
fn a_version_is_told_to_who_asks() {
    for flag in ["--version", "-version", "-V"] {
        let told = help(&[PROGRAM.into(), flag.into()]);
        assert_eq!(told, Some(format!("pyrycode-relay {VERSION}")));
    }
    assert_eq!(help(&[PROGRAM.into(), "--grace=1s".into()]), None);
}

#[test]
fn help_names_every_flag() {
    for flag in ["--help", "-help", "-h"] {
        let text = help(&[PROGRAM.into(), flag.into()]).unwrap();
        for arg in flags::command().get_arguments().filter(|arg| !arg.is_hide_set()) {
            let name = format!("--{}", arg.get_long().unwrap());
            assert!(text.contains(&name), "{name}");
            assert!(arg.get_help().is_some_and(|help| !help.to_string().is_empty()), "{name}");
        }
        // As a shell reads it: a line that goes on says so.
        let unwrapped = text.replace("\\\n", "");
        let lines = unwrapped.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let lines: Vec<String> = lines.map(|words| words.join(" ")).collect();
        for command in trial_commands(DEFAULT_LISTEN) {
            assert!(lines.contains(&command), "{command}");
        }
    }
}

#[test]
fn flags_are_put_together_as_clap_wants_it() {
    flags::command().debug_assert();
    let err = flags::command().try_get_matches_from([PROGRAM, "--help"]).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::DisplayHelp);
}

#[test]
fn from_args_reads_this_machine() {
    let config = Config::from_args([PROGRAM.into(), "--insecure-listen=:0".into()]).unwrap();
    assert!(config.workers >= 1 && !config.cpus.is_empty());
    assert!(config.memory_budget_bytes >= MIN_BUDGET_BYTES);
}

#[test]
fn https_is_served_with_files_or_by_acme() {
    let https = |args: &[&str]| parse(args).unwrap().https.unwrap();
    let files = https(&["--tls-cert=c.pem", "--tls-key=k.pem", "-https-listen", "[::1]:8443"]);
    assert_eq!(
        files,
        Https {
            listen: "[::1]:8443".parse().unwrap(),
            domain: None,
            proxy_protocol: false,
            certificate: CertificateSource::Files { cert: "c.pem".into(), key: "k.pem".into() },
        }
    );
    let acme = https(&[
        "-https-proxy-protocol",
        "-domain=a.b",
        "--cert-cache=/c",
        "--http-listen=:8080",
        "--acme-directory=https://ca/dir",
        "--acme-ca=/ca.pem",
    ]);
    assert!(acme.proxy_protocol);
    assert_eq!(
        acme.certificate,
        CertificateSource::Acme {
            cache: "/c".into(),
            http_listen: Some("[::]:8080".parse().unwrap()),
            directory: "https://ca/dir".to_owned(),
            ca: Some("/ca.pem".into()),
        }
    );
    assert!(!https(&["-https-proxy-protocol=false", "-domain=a.b"]).proxy_protocol);
}

#[test]
fn contradictions_are_refused() {
    let table: &[(&[&str], &str)] = &[
        (&["--insecure-listen=:80", "--domain=a.b"], "leave one of them out"),
        (&["--insecure-listen=:80", "--https-listen=:443"], "--https-listen is for HTTPS"),
        (&["--https-listen=:443"], "needs --domain, or --tls-cert and --tls-key"),
        (&["--cert-cache=/c"], "needs --domain, or --tls-cert and --tls-key"),
        (&["--https-proxy-protocol"], "needs --domain, or --tls-cert and --tls-key"),
        (&["--tls-cert=c"], "--tls-cert needs its private key"),
        (&["--tls-key=k"], "--tls-key needs its certificate"),
        (&["--tls-cert=c", "--tls-key=k", "--cert-cache=/c"], "--cert-cache is for certificates"),
        (&["--domain=a.b", "--proxy-protocol-from=::1"], "--https-proxy-protocol"),
        (&["--domain=https://a.b"], "is not a host name"),
        (&["--metrics-listen=:9090"], "is not a loopback IP address"),
        (&["--metrics-listen=0.0.0.0:9090"], "0.0.0.0 is not a loopback address"),
        (&["--rate-limit=20"], "has no slash"),
        (&["--rate-limit=0/6s"], "too few"),
        (&["--rate-limit=1/6"], "has no unit"),
        (&["--max-connections=0"], "too few"),
        (&["--max-connections=off"], "is not a number"),
        (&["--max-connections-per-address=none"], "or off"),
        (&["--trust-x-forwarded-for=10.0.0.1/8"], "bits beyond its prefix"),
        (&["--proxy-protocol-from=localhost"], "is not a network"),
    ];
    for (args, says) in table {
        let refusal = refusal(args);
        assert!(refusal.contains(says), "{args:?}: {refusal}");
    }
}

#[test]
fn connections_by_default_are_what_descriptors_and_memory_allow() {
    let with = |memory_limit_bytes, args: &[&str]| {
        parse_on(Machine { memory_limit_bytes, ..machine() }, args).unwrap()
    };
    assert_eq!(with(Some(GIB), &[]).max_connections, 19_464);
    let small = with(Some(64 << 20), &[]);
    assert_eq!((small.max_connections, small.max_connections_per_address), (18_770, Some(4692)));
    assert_eq!(
        small.show_limits(),
        "--max-connections 18770 (descriptors allow 19464, memory 18770) \
         --max-connections-per-address 4692 --rate-limit 20/6s; before \
         their upgrade at most 4692 sockets"
    );
    let asked = with(
        Some(64 << 20),
        &["--max-connections=30", "--max-connections-per-address=off", "--rate-limit=3/1m30s"],
    );
    assert_eq!(
        asked.show_limits(),
        "--max-connections 30 (descriptors allow 19464, memory 18770) \
         --max-connections-per-address off --rate-limit 3/1m30s; before \
         their upgrade at most 4692 sockets"
    );
    let off = with(None, &["--rate-limit=off", "--memory-budget=252MiB"]);
    assert_eq!((off.max_connections, off.max_connections_per_address), (1, Some(16)));
    assert!(off.show_limits().contains("--rate-limit off; before"));
}
