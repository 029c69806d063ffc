use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::*;
use crate::sink::metrics::Tally;

fn board() -> Arc<Board> {
    Arc::new(Board::new("0.1.0", "6.18.5".into(), 0, Duration::from_secs(60), None))
}

fn served() -> (Arc<Board>, SocketAddr, Server) {
    let board = board();
    let door = Door::tcp(([127, 0, 0, 1], 0).into()).unwrap();
    let address = door.address().unwrap();
    (Arc::clone(&board), address, Server::start(door, board, || {}).unwrap())
}

fn asked(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn got(address: SocketAddr, path: &str, more: &str) -> String {
    asked(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n"))
}

#[test]
fn a_scrape_gets_the_format_that_it_asks_for() {
    let (board, address, _server) = served();
    board.beat(1_500_000_000_250_000_000);
    let plain = got(address, "/metrics", "");
    assert!(plain.starts_with("HTTP/1.1 200 OK\r\n"), "{plain}");
    assert!(plain.contains("content-type: text/plain; version=0.0.4"), "{plain}");
    assert!(plain.contains("\nlockwatch_heartbeat_timestamp_seconds 1500000000.250000000\n"));
    assert!(!plain.contains("# EOF"));
    let open = got(address, "/metrics", "Accept: application/openmetrics-text;version=1.0.0\r\n");
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
    assert!(open.ends_with("# EOF\n"), "{open}");
}

#[test]
fn probes_tell_health_and_readiness_apart() {
    let (board, address, _server) = served();
    let status = |path| got(address, path, "").lines().next().unwrap().to_owned();
    assert_eq!(status("/healthz"), "HTTP/1.1 503 Service Unavailable");
    assert_eq!(status("/readyz"), "HTTP/1.1 503 Service Unavailable");
    board.beat(1);
    assert_eq!(status("/healthz"), "HTTP/1.1 200 OK");
    assert_eq!(status("/readyz"), "HTTP/1.1 503 Service Unavailable");
    board.swept();
    board.mounted(true);
    assert_eq!(status("/readyz"), "HTTP/1.1 200 OK");
}

#[test]
fn nothing_but_reading_three_paths_is_answered() {
    let (_board, address, _server) = served();
    assert!(got(address, "/", "").starts_with("HTTP/1.1 404"));
    assert!(got(address, "/metrics/..", "").starts_with("HTTP/1.1 404"));
    let post = asked(address, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert!(post.starts_with("HTTP/1.1 405") && post.contains("allow: GET, HEAD"), "{post}");
    let head = asked(address, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(asked(address, "\0\0\0\r\n\r\n").starts_with("HTTP/1.1 400"));
    let long = format!("X: {}\r\n", "x".repeat(64 << 10));
    let refused = got(address, "/metrics", &long);
    assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 4"), "{refused}");
}

#[test]
fn who_hangs_takes_no_place_from_who_asks_and_is_put_out() {
    let (_board, address, _server) = served();
    let mut hanging: Vec<TcpStream> =
        (0..CONNECTIONS - 1).map(|_| TcpStream::connect(address).unwrap()).collect();
    for stream in &mut hanging {
        stream.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    }
    assert!(got(address, "/metrics", "").starts_with("HTTP/1.1 200"));
    let began = Instant::now();
    let mut rest = Vec::new();
    hanging[0].read_to_end(&mut rest).unwrap();
    assert!(began.elapsed() < CONNECTION_LIMIT + Duration::from_secs(2));
}

#[test]
fn a_unix_socket_is_made_and_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.sock");
    let server = Server::start(Door::unix(&path).unwrap(), board(), || {}).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let taken = Door::unix(&path).unwrap_err().to_string();
    assert!(taken.contains("another process listens there"), "{taken}");
    drop(server);
    assert!(!path.exists());
}

#[test]
fn what_a_dead_daemon_left_is_replaced_and_a_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    drop(Door::unix(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "mine").unwrap();
    let error = Door::unix(&path).unwrap_err().to_string();
    assert!(error.contains("no socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn a_taken_address_is_an_error_that_names_it() {
    let (_board, address, _server) = served();
    let error = Door::tcp(address).unwrap_err().to_string();
    assert!(error.contains(&address.to_string()), "{error}");
}

#[test]
fn scrapes_while_the_daemon_publishes_are_whole() {
    let (board, address, _server) = served();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut tally = Tally::default();
            for at in 1..2000 {
                tally.gc_run();
                board.tell(&tally);
                board.beat(at);
            }
        });
        for _ in 0..20 {
            let text = got(address, "/metrics", "Accept: application/openmetrics-text\r\n");
            assert!(text.ends_with("# EOF\n"), "{text}");
        }
    });
}
