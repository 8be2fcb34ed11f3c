//! `HTTP_GET`, `SSL_GET`, `SMTP_CHECK` and `MISC_CHECK` of the real keepalived and of ours, one after the
//! other with the same file on the kernel's table: what they say, and which servers they find good.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use e2e::lab::{inside, run, tool, wait_for};
use rlvs_linux::netns::Namespace;
use rlvs_linux::process::Guard;

use crate::checks::{Checking, commands};
use crate::daemon::connect;
use crate::guest;

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 101);
const WEB: u16 = 80;
const TLS: u16 = 443;
const MAIL: u16 = 25;
const FOLDER: &str = "/run/streams";

/// Each virtual server, by its port, has one kind of check.
const CHECKS: [(u16, u16, &str); 10] = [
    (1, WEB, "HTTP_GET {\n url {\n path /a?b=c\n status_code 200\n }\n }"),
    (
        2,
        WEB,
        "HTTP_GET {\n virtualhost www.example.com\n url {\n path /\n }\n url {\n path /two\n }\n }",
    ),
    (3, TLS, "SSL_GET {\n url {\n path /tls\n status_code 200\n }\n }"),
    (4, MAIL, "SMTP_CHECK {\n helo_name lb.example.com\n }"),
    (5, WEB, "MISC_CHECK {\n misc_path \"/run/streams/misc plain\"\n misc_timeout 2\n }"),
    (6, WEB, "MISC_CHECK {\n misc_path \"/run/streams/misc dynamic\"\n misc_dynamic\n }"),
    (7, MAIL + 1, "SMTP_CHECK {\n }"),
    (8, MAIL + 2, "SMTP_CHECK {\n }"),
    (9, MAIL + 3, "SMTP_CHECK {\n }"),
    (10, MAIL + 4, "SMTP_CHECK {\n }"),
];
/// What mail servers answer to a greeting and a farewell, by their ports from [`MAIL`] on; they close the
/// connection then, or instead.
const MAIL_ANSWERS: [[Option<&str>; 2]; 5] = [
    [Some("250 fine"), Some("221 bye")],
    [Some("250 fine"), Some("250 fine")],
    [Some("250 fine"), None],
    [Some("250 fine"), Some("554 no")],
    [None, None],
];
/// Ends with what a file says that its first word names.
const SCRIPT: &str =
    "#!/bin/sh\necho \"misc $*\" >> /run/streams/said\nexit $(cat /run/streams/$1)\n";

fn configuration() -> String {
    let server = |(number, port, check): (u16, u16, &str)| {
        format!(
            "virtual_server 10.9.9.9 {number} {{\n delay_loop 1\n lb_algo rr\n lb_kind NAT\n \
             protocol TCP\n warmup 0\n retry 1\n delay_before_retry 1\n connect_timeout 1\n \
             alpha\n real_server {SERVER} {port} {{\n weight 1\n {check}\n }}\n}}\n"
        )
    };
    format!("global_defs {{\n script_user root\n}}\n{}", CHECKS.map(server).concat())
}

#[test]
fn requests_and_commands_are_those_of_keepalived() {
    if !guest::is_guest() {
        guest::run("streams::requests_and_commands_are_those_of_keepalived");
        return;
    }
    let director = Namespace::create("director").unwrap();
    let servers = Namespace::create("servers").unwrap();
    connect(&director, &servers);
    fs::create_dir(FOLDER).unwrap();
    certificate(&servers);
    let script = format!("{FOLDER}/misc");
    fs::write(&script, SCRIPT).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let answering = Answering::start(&servers);
    let [theirs, ours] = commands().map(|command| play(&director, &servers, &answering, command));
    // Three requests and one over TLS, what a mail server hears, two commands.
    assert_eq!(theirs.len(), 7, "{theirs:#?}");
    assert_eq!(ours, theirs);
}

/// Has one of them check while all is well, while nothing is, and again; returns what it has said.
fn play(
    director: &Namespace,
    servers: &Namespace,
    answering: &Answering,
    command: Command,
) -> BTreeSet<String> {
    answering.said.lock().unwrap().clear();
    fs::write(format!("{FOLDER}/said"), "").unwrap();
    exit_with([0, 0]);
    let mut web = Some(nginx(servers));
    let checking = Checking::start(director, command, &configuration());
    // The eighth says nothing to a farewell, the tenth nothing to a greeting.
    let well = [1, 2, 3, 4, 5, 6, 7, 9].map(|number| (number, 1));
    checking.wait_served(director, "all is well", &well);
    // The last one says that its server is to have another weight: two less than its status.
    answering.fails.store(true, Ordering::Relaxed);
    exit_with([1, 12]);
    web = web.take().and(None);
    checking.wait_served(director, "nothing is well", &[(6, 10)]);
    answering.fails.store(false, Ordering::Relaxed);
    exit_with([0, 3]);
    web.get_or_insert_with(|| nginx(servers));
    checking.wait_served(director, "all is well again", &well);
    checking.end();
    drop(web);
    let mut said = std::mem::take(&mut *answering.said.lock().unwrap());
    for name in ["said", "access.log"] {
        let text = fs::read_to_string(format!("{FOLDER}/{name}")).unwrap();
        said.extend(text.lines().map(str::to_owned));
    }
    fs::remove_file(format!("{FOLDER}/access.log")).unwrap();
    eprintln!("{said:#?}");
    said
}

/// What the two commands end with.
fn exit_with([plain, dynamic]: [u8; 2]) {
    for (name, status) in [("plain", plain), ("dynamic", dynamic)] {
        // At once: a command may be reading.
        let new = format!("{FOLDER}/new");
        fs::write(&new, status.to_string()).unwrap();
        fs::rename(new, format!("{FOLDER}/{name}")).unwrap();
    }
}

fn certificate(namespace: &Namespace) {
    let (key, certificate) = (format!("{FOLDER}/key.pem"), format!("{FOLDER}/cert.pem"));
    let words = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "7",
        "-subj",
        "/CN=www.example.com",
        "-keyout",
        &key,
        "-out",
        &certificate,
    ];
    run(namespace, &tool("openssl").unwrap(), &words).ok();
}

/// Starts a web server with TLS that notes what it is asked.
fn nginx(servers: &Namespace) -> Guard {
    let text = format!(
        "daemon off; master_process off; pid {FOLDER}/pid; error_log {FOLDER}/error.log;
         events {{ worker_connections 64; }}
         http {{
             log_format said 'TLS $request|$http_host|$http_user_agent|$http_connection';
             access_log {FOLDER}/access.log said; client_body_temp_path {FOLDER}/body;
             proxy_temp_path {FOLDER}/proxy; fastcgi_temp_path {FOLDER}/fastcgi;
             uwsgi_temp_path {FOLDER}/uwsgi; scgi_temp_path {FOLDER}/scgi;
             server {{
                 listen {SERVER}:{TLS} ssl;
                 ssl_certificate {FOLDER}/cert.pem; ssl_certificate_key {FOLDER}/key.pem;
                 return 200 fine;
             }}
         }}"
    );
    let file = format!("{FOLDER}/nginx.conf");
    fs::write(&file, text).unwrap();
    let mut command = Command::new(tool("nginx").unwrap());
    let log = format!("{FOLDER}/error.log");
    command
        .args(["-e", &log, "-c", &file])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    inside(servers, &mut command);
    let guard = Guard::new(command.spawn().unwrap());
    wait_for("a web server", || {
        let connected = servers.run(|| TcpStream::connect((SERVER, TLS))).unwrap();
        connected.map_err(|error| format!("{error} {:?}", fs::read_to_string(&log)))
    });
    assert!(Path::new(FOLDER).join("access.log").exists());
    guard
}

/// A web server and a mail server, until the process ends.
struct Answering {
    fails: Arc<AtomicBool>,
    said: Arc<Mutex<BTreeSet<String>>>,
}

impl Answering {
    fn start(servers: &Namespace) -> Self {
        let one = Self { fails: Arc::default(), said: Arc::default() };
        for port in [WEB].into_iter().chain(MAIL..).take(1 + MAIL_ANSWERS.len()) {
            let listener = servers.run(|| TcpListener::bind((SERVER, port))).unwrap().unwrap();
            let (fails, said) = (Arc::clone(&one.fails), Arc::clone(&one.said));
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let fails = fails.load(Ordering::Relaxed);
                    // Who asks may go away before the end.
                    let heard = match port
                        .checked_sub(MAIL)
                        .and_then(|at| MAIL_ANSWERS.get(usize::from(at)))
                    {
                        Some(answers) => mail(&stream, fails, answers),
                        None => web(&stream, fails),
                    };
                    said.lock().unwrap().extend(heard);
                }
            });
        }
        one
    }
}

/// Answers a request; returns it, whole.
fn web(mut stream: &TcpStream, fails: bool) -> Option<String> {
    let mut request = String::new();
    let mut reader = BufReader::new(stream);
    while !request.ends_with("\r\n\r\n") {
        reader.read_line(&mut request).ok().filter(|bytes| *bytes > 0)?;
    }
    let status = if fails { "500 Broken" } else { "200 Fine" };
    write!(stream, "HTTP/1.0 {status}\r\nContent-Length: 5\r\n\r\nfine\n").ok();
    Some(format!("web {request:?}"))
}

/// Greets a mail client and answers it; returns what it said.
fn mail(mut stream: &TcpStream, fails: bool, answers: &[Option<&str>]) -> Option<String> {
    let greeting = if fails { "554 not today" } else { "220 mail.example.com" };
    write!(stream, "{greeting}\r\n").ok()?;
    let mut said = String::new();
    let mut reader = BufReader::new(stream);
    for answer in answers.iter().flatten().filter(|_| !fails) {
        reader.read_line(&mut said).ok()?;
        write!(stream, "{answer}\r\n").ok()?;
    }
    (!fails && *answers == MAIL_ANSWERS[0]).then(|| format!("mail {said:?}"))
}
