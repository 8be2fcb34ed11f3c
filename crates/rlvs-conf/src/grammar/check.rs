//! Checkers.

use super::*;

/// What most checkers take.
#[rustfmt::skip]
macro_rules! checker {
    ($retry:expr; $($row:expr),* $(,)?) => {
        &[
            $($row,)*
            done("connect_ip", &[Arg::Address], "the real server's", "address to check"),
            done("connect_port", &[Arg::Number(1, 65535)], "the real server's", "port to check"),
            done("bindto", &[Arg::Address], "", "source address"),
            done("bind_if", &[Arg::Interface], "", "interface of the source address"),
            done("bind_port", &[Arg::Number(1, 65535)], "", "source port"),
            done("connect_timeout", &[TIME], "that of the real_server", "longest wait for an answer"),
            done("fwmark", &[COUNT], "0", "mark of the check's packets"),
            RETRY, DELAY_BEFORE_RETRY, WARMUP, DELAY_LOOP, ALPHA, LOG_ALL, TIMEOUT, FALL, RISE, $retry,
        ]
    };
}

#[rustfmt::skip]
const RETRY: Keyword = done("retry", &[COUNT], "1; DNS_CHECK 3, MISC_CHECK 0; 0 with fall", "attempts more in a round");
#[rustfmt::skip]
const DELAY_BEFORE_RETRY: Keyword = done("delay_before_retry", &[TIME0], "1; HTTP_GET 3, DNS_CHECK delay_loop", "seconds before another attempt");
#[rustfmt::skip]
const WARMUP: Keyword = done("warmup", &[TIME0], "that of the real_server", "the first check is somewhere in so many seconds");
#[rustfmt::skip]
const DELAY_LOOP: Keyword =
    done("delay_loop", &[TIME], "that of the real_server", "seconds from round to round");
#[rustfmt::skip]
const ALPHA: Keyword = done("alpha", SWITCH, "alpha of the real_server", "down until it succeeds");
#[rustfmt::skip]
const LOG_ALL: Keyword =
    done("log_all_failures", SWITCH, "checker_log_all_failures", "log every failure");
#[rustfmt::skip]
const TIMEOUT: Keyword = done("timeout", &[TIME], "none", "longest time of a whole check").ours();
#[rustfmt::skip]
const FALL: Keyword =
    done("fall", &[Arg::Number(1, I31)], "1", "failed rounds in a row until it is down").ours();
#[rustfmt::skip]
const RISE: Keyword = done("rise", &[Arg::Number(1, I31)], "1; HTTP_GET and SSL_GET 2", "good rounds in a row until it is up")
.ours();
#[rustfmt::skip]
const NB_GET_RETRY: Keyword =
    done("nb_get_retry", &[COUNT], "", "attempts more in a round").instead("retry");

#[rustfmt::skip]
const URL: &[Keyword] = &[
    done("path", &[Arg::Text], "/", "what is asked for"),
    done("digest", &[Arg::Digest], "", "MD5 of the body"),
    done("status_code", &[Arg::Codes, Arg::Many(&Arg::Codes)], "200-299", "good answers"),
    done("virtualhost", &[Arg::Text], "that of the checker", "host name in the request"),
    done("regex", &[Arg::Text], "", "what the body must hold"),
    done("regex_no_match", NONE, "", "it must not hold it"),
    kept("regex_options", &[Arg::Many(&Arg::Name)], "", "options of the expression"),
    kept("regex_stack", &[COUNT1, COUNT1], "", "memory of the matcher").void(),
    kept("regex_min_offset", &[COUNT], "0", "from this byte on"),
    kept("regex_max_offset", &[COUNT], "", "up to this byte"),
    kept("tls_compliant", NONE, "", "the end of a stream must be told").newer(),
];

#[rustfmt::skip]
const HOST: &[Keyword] = &[
    kept("connect_ip", &[Arg::Address], "", "address to check"),
    kept("connect_port", &[Arg::Number(1, 65535)], "", "port to check"),
    kept("bindto", &[Arg::Address], "", "source address"),
    kept("bind_if", &[Arg::Interface], "", "interface of the source address"),
    kept("bind_port", &[Arg::Number(1, 65535)], "", "source port"),
    kept("connect_timeout", &[TIME], "", "longest wait for an answer"),
    kept("fwmark", &[COUNT], "", "mark of the check's packets"),
];

#[rustfmt::skip]
pub(super) const HTTP: &[Keyword] = checker![NB_GET_RETRY;
    done("virtualhost", &[Arg::Text], "that of the real_server", "host name in requests"),
    done("http_protocol", &[Arg::OneOf(&["1.0", "1.0C", "1.1", "1.0c"])], "1.0", "version; 1.0C: close the connection"),
    done("fast_recovery", SWITCH, "off", "no pauses between the checks of a recovery"),
    done("enable_sni", NONE, "", "name the virtualhost in the TLS handshake"),
    done("sni_name", &[Arg::Text], "", "name in the TLS handshake").newer(),
    kept("tls_compliant", NONE, "", "the end of a stream must be told").newer(),
    done("url", NONE, "required", "something to ask for").block(URL),
];

#[rustfmt::skip]
pub(super) const TCP: &[Keyword] = checker![NB_GET_RETRY.ours();];
#[rustfmt::skip]
pub(super) const PING: &[Keyword] = checker![NB_GET_RETRY.ours();];

#[rustfmt::skip]
pub(super) const SMTP: &[Keyword] = checker![NB_GET_RETRY.ours();
    done("helo_name", &[Arg::Text], "smtpchecker.keepalived.org", "name in the greeting"),
    kept("host", NONE, "", "ends of the check, in a block of their own").block(HOST),
];

#[rustfmt::skip]
pub(super) const DNS: &[Keyword] = checker![NB_GET_RETRY.ours();
    done("type", &[Arg::OneOf(&["A", "NS", "CNAME", "SOA", "MX", "TXT", "AAAA"])], "SOA", "what is asked for"),
    done("name", &[Arg::Name], ".", "name that is asked for"),
];

#[rustfmt::skip]
pub(super) const UDP: &[Keyword] = checker![NB_GET_RETRY.ours();
    done("payload", &[Arg::Hex], "32 bytes of text", "what is sent"),
    done("require_reply", &[Arg::Maybe(&Arg::Hex)], "off", "something must come back, or this"),
    done("min_reply_length", &[Arg::Number(0, 65535)], "0", "least length of an answer"),
    done("max_reply_length", &[Arg::Number(0, 65535)], "255", "largest length of an answer"),
];

#[rustfmt::skip]
pub(super) const MISC: &[Keyword] = &[
    done("misc_path", SCRIPT, "required", "command to run"),
    done("misc_timeout", &[Arg::Seconds(0, EVER)], "delay_loop", "longest run"),
    done("misc_dynamic", NONE, "", "its status sets the weight"),
    done("user", USER, "script_user", "who runs it"),
    RETRY,
    DELAY_BEFORE_RETRY,
    WARMUP,
    DELAY_LOOP,
    ALPHA,
    LOG_ALL,
    TIMEOUT,
    FALL,
    RISE,
    NB_GET_RETRY.ours(),
];

#[rustfmt::skip]
pub(super) const BFD: &[Keyword] = &[
    done("name", &[Arg::Name], "required", "the session"),
    done("alpha", SWITCH, "alpha of the real_server", "down until it is up"),
];

#[rustfmt::skip]
pub(super) const FILE: &[Keyword] = &[
    done("track_file", &[Arg::Name], "required", "the file"),
    done("weight", &[Arg::Number(-I31, I31)], "1", "factor of its number").options(&[REVERSE]),
];
