//! Every metric that workers count, with its labels, in one table. No label comes from a peer.

/// Whether a metric only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until the process ends.
    Counter,
    /// It stands at some value.
    Gauge,
}

/// A metric: one name, and what it is counted by.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name, as Prometheus knows it.
    pub name: &'static str,
    /// Whether it only grows.
    pub kind: Kind,
    /// What it tells, in one line.
    pub help: &'static str,
    /// Shown for each worker, rather than for all together.
    pub by_worker: bool,
    /// The labels of each of its series, as they stand between the braces.
    pub series: &'static [(&'static str, Series)],
}

macro_rules! families {
    ($($name:literal $kind:ident $scope:ident $help:literal {
        $($series:ident $labels:literal)*
    })*) => {
        /// What one worker counts.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        #[allow(missing_docs)] // The table says what each is.
        pub enum Series { $($($series,)*)* }

        impl Series {
            /// How many there are.
            pub const COUNT: usize = [$($(Self::$series,)*)*].len();
        }

        /// Every metric, in the order in which they are shown.
        pub const FAMILIES: &[Family] = &[$(Family {
            name: concat!("pyrycode_relay_", $name),
            kind: Kind::$kind,
            help: $help,
            by_worker: families!(@scope $scope),
            series: &[$(($labels, Series::$series),)*],
        },)*];
    };
    (@scope process) => { false };
    (@scope worker) => { true };
}

families! {
    "connected_binaries" Gauge process "Binaries that hold a server-id; one in grace does not count." {
        ConnectedBinaries ""
    }
    "connected_phones" Gauge process "Phones that are registered, those of an id in grace included." {
        ConnectedPhones ""
    }
    "frames_forwarded_total" Counter process "Messages passed on." {
        FramesPhoneToBinary "direction=\"phone_to_binary\""
        FramesBinaryToPhone "direction=\"binary_to_phone\""
    }
    "forwarded_bytes_total" Counter process "Bytes of JSON in the messages passed on." {
        BytesPhoneToBinary "direction=\"phone_to_binary\""
        BytesBinaryToPhone "direction=\"binary_to_phone\""
    }
    "grace_expiries_total" Counter process "Server-ids whose binary did not come back in time." {
        GraceExpiries ""
    }
    "ws_upgrade_attempts_total" Counter process "WebSocket upgrade requests, by outcome." {
        UpgradeServerAccept "endpoint=\"server\",outcome=\"accept\""
        UpgradeServerRejectHeaders "endpoint=\"server\",outcome=\"reject_headers\""
        UpgradeServerReject409 "endpoint=\"server\",outcome=\"reject_409\""
        UpgradeServerReject404 "endpoint=\"server\",outcome=\"reject_404\""
        UpgradeServerReject429 "endpoint=\"server\",outcome=\"reject_429\""
        UpgradeServerRejectRateLimit "endpoint=\"server\",outcome=\"reject_rate_limit\""
        UpgradeClientAccept "endpoint=\"client\",outcome=\"accept\""
        UpgradeClientRejectHeaders "endpoint=\"client\",outcome=\"reject_headers\""
        UpgradeClientReject409 "endpoint=\"client\",outcome=\"reject_409\""
        UpgradeClientReject404 "endpoint=\"client\",outcome=\"reject_404\""
        UpgradeClientReject429 "endpoint=\"client\",outcome=\"reject_429\""
        UpgradeClientRejectRateLimit "endpoint=\"client\",outcome=\"reject_rate_limit\""
    }
    "register_failures_total" Counter process "Claims and registrations that failed." {
        RegisterNoServer "kind=\"no_server\""
        RegisterServerInUse "kind=\"server_in_use\""
        RegisterPhonesAtCap "kind=\"phones_at_cap\""
        RegisterRateLimit "kind=\"ratelimit\""
    }
    "connections_refused_total" Counter process "Connections refused by a limit or a rule of the operator (503, or aborted at once)." {
        RefusedConnections "cause=\"max_connections\""
        RefusedOfAddress "cause=\"max_connections_per_address\""
        RefusedVisitors "cause=\"not_upgraded_per_address\""
        RefusedOldest "cause=\"not_upgraded\""
        RefusedDraining "cause=\"draining\""
        RefusedBlocked "cause=\"blocked\""
        RefusedServerId "cause=\"server_id_not_allowed\""
        RefusedArrivals "cause=\"new_connections_rate\""
        RefusedClaim "cause=\"claim_not_verified\""
    }
    "phones_without_token_total" Counter process "Phones that were let in without X-Pyrycode-Token (--token-header optional)." {
        PhonesWithoutToken ""
    }
    "claim_verifications_total" Counter process "Claims of binaries that --verify-url was to be asked about, by what it said; answers that were remembered count too." {
        VerifiedAllowed "outcome=\"allowed\""
        VerifiedDenied "outcome=\"denied\""
        VerifiedNoAnswer "outcome=\"no_answer\""
        VerifiedTooMany "outcome=\"too_many\""
    }
    "server_id_rate_pauses_total" Counter process "Times that a connection was not read for a moment, because its server-id was over --server-id-rate." {
        Slowed ""
    }
    "connections" Gauge process "Connections, by state." {
        ConnectionsHead "state=\"head\""
        ConnectionsMoving "state=\"moving\""
        ConnectionsVerifying "state=\"verifying\""
        ConnectionsNewcomer "state=\"newcomer\""
        ConnectionsBinary "state=\"binary\""
        ConnectionsPhone "state=\"phone\""
        ConnectionsClosing "state=\"closing\""
    }
    "accepted_total" Counter process "TCP connections accepted." {
        Accepted ""
    }
    "accept_pauses_total" Counter process "Times that accepting paused because descriptors or memory had run out." {
        AcceptPauses ""
    }
    "handshake_failures_total" Counter process "Connections that ended before a request that the relay serves." {
        HandshakeHead "kind=\"bad_head\""
        HandshakeTimeout "kind=\"head_timeout\""
        HandshakeMisdirected "kind=\"other_host\""
        HandshakeTls "kind=\"tls\""
        HandshakeRate "kind=\"tls_rate_limit\""
        HandshakeProxyHeader "kind=\"proxy_header\""
    }
    "takeovers_total" Counter process "Server-ids that a newcomer took from a holder that did not answer." {
        Takeovers ""
    }
    "reclaims_total" Counter process "Server-ids that a binary took back in grace." {
        Reclaims ""
    }
    "malformed_messages_total" Counter process "Messages that violate the protocol." {
        MalformedEnvelopes "from=\"binary\""
        MalformedPhoneMessages "from=\"phone\""
    }
    "unknown_conn_ids_total" Counter process "Messages of binaries for a phone that is not connected to them." {
        UnknownConnIds ""
    }
    "memory_sheds_total" Counter process "Connections that were ended because the memory budget was used up." {
        MemorySheds ""
    }
    "closes_total" Counter process "WebSocket connections that ended with a close frame, by the code that was sent." {
        CloseNormal "code=\"1000\",reason=\"normal\""
        CloseShuttingDown "code=\"1001\",reason=\"shutting_down\""
        CloseKeysUsedUp "code=\"1001\",reason=\"tls_keys_used_up\""
        CloseProtocolError "code=\"1002\",reason=\"protocol_error\""
        CloseInvalidUtf8 "code=\"1007\",reason=\"invalid_utf8\""
        CloseTooBig "code=\"1009\",reason=\"too_big\""
        CloseHeartbeat "code=\"1011\",reason=\"heartbeat_timeout\""
        CloseBacklog "code=\"1011\",reason=\"phone_backlog_full\""
        CloseDrained "code=\"1012\",reason=\"drained\""
        CloseNoServer "code=\"4404\",reason=\"no_server\""
        CloseReclaimed "code=\"4404\",reason=\"reclaimed\""
        CloseAlreadyClaimed "code=\"4409\",reason=\"already_claimed\""
        CloseTooManyPhones "code=\"4429\",reason=\"too_many_phones\""
        DirectiveNormal "code=\"1000\",reason=\"asked_by_binary\""
        DirectiveGoingAway "code=\"1001\",reason=\"asked_by_binary\""
        DirectivePolicy "code=\"1008\",reason=\"asked_by_binary\""
        DirectiveInternal "code=\"1011\",reason=\"asked_by_binary\""
        Directive4401 "code=\"4401\",reason=\"asked_by_binary\""
        Directive4412 "code=\"4412\",reason=\"asked_by_binary\""
        Directive4421 "code=\"4421\",reason=\"asked_by_binary\""
        Directive4426 "code=\"4426\",reason=\"asked_by_binary\""
        DirectiveOther "code=\"other\",reason=\"asked_by_binary\""
        CloseByOperator "code=\"other\",reason=\"asked_by_operator\""
        PeerNormal "code=\"1000\",reason=\"asked_by_peer\""
        PeerGoingAway "code=\"1001\",reason=\"asked_by_peer\""
        PeerNoCode "code=\"1005\",reason=\"asked_by_peer\""
        PeerOther "code=\"other\",reason=\"asked_by_peer\""
    }
    "connections_lost_total" Counter process "WebSocket connections that ended without a close frame." {
        LostPeer "reason=\"peer_gone\""
        LostWriteTimeout "reason=\"write_timeout\""
        LostMessageTimeout "reason=\"message_timeout\""
        LostMemory "reason=\"memory_budget\""
        LostTls "reason=\"tls\""
    }
    "server_ids" Gauge process "Server-ids that are held or in grace." {
        ServerIds ""
    }
    "timers" Gauge process "Timers of connections and server-ids." {
        Timers ""
    }
    "memory_charged_bytes" Gauge worker "Bytes charged to the memory budget: queued, or half read." {
        ChargedBytes ""
    }
    "invariants_broken_total" Counter process "Invariants that were found broken: faults of the relay itself." {
        InvariantsBroken ""
    }
    "loop_turns_total" Counter worker "Turns of the worker's loop." {
        Turns ""
    }
    "loop_turns_over_1ms_total" Counter worker "Turns of the worker's loop that took longer than a millisecond: meanwhile nobody else of the worker is heard." {
        TurnsOver1Ms ""
    }
    "loop_turns_over_5ms_total" Counter worker "Those of them that took longer than 5 ms." {
        TurnsOver5Ms ""
    }
    "ring_enters_total" Counter worker "System calls of the worker's ring (io_uring_enter)." {
        RingEnters ""
    }
    "ring_waits_total" Counter worker "Ring system calls that wait if nothing has completed: the worker's wakes." {
        RingWaits ""
    }
    "loop_completions_total" Counter worker "Ring operations that have completed." {
        Completions ""
    }
    "loop_completions_max" Gauge worker "The most ring operations that one turn found completed; it takes 256 at most, the others wait for the next." {
        CompletionsMax ""
    }
    "starved_receives_total" Counter worker "Receives that found no free buffer and were tried again." {
        StarvedReceives ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_series_stands_in_the_table_once_and_names_are_those_of_prometheus() {
        let mut seen = BTreeSet::new();
        for family in FAMILIES {
            let counts = family.name.ends_with("_total");
            assert_eq!(counts, family.kind == Kind::Counter, "{}", family.name);
            assert!(family.help.ends_with('.') && !family.help.contains('\n'), "{}", family.name);
            for (labels, series) in family.series {
                assert!(seen.insert((family.name, *labels)), "{} {labels}", family.name);
                assert!((*series as usize) < Series::COUNT);
            }
        }
        assert_eq!(seen.len(), Series::COUNT);
    }
}
