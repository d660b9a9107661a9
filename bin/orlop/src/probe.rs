//! `orlop probe`: how a container's runtime asks a server that listens on loopback, where nobody else can.

use crate::failure::{Failure, Kind, OrFail, Outcome};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(4);
/// The status line is all that is looked at.
const ANSWER_BYTES: u64 = 64;

/// Succeeds if the server answers that all is well.
pub(crate) fn run(url: &str) -> Outcome {
    let usage = || {
        Failure::new(format!("{url:?} is no address of a probe"))
            .kind(Kind::Usage)
            .hint("write http://IP:PORT/PATH")
    };
    let rest = url.strip_prefix("http://").ok_or_else(usage)?;
    let (host, path) = rest.split_once('/').ok_or_else(usage)?;
    let address: SocketAddr = host.parse().map_err(|_| usage())?;
    let status = status(address, path).or_fail(|| format!("{url} does not answer"))?;
    let code = status.split_whitespace().nth(1).unwrap_or_default();
    if code.len() == 3 && code.starts_with('2') {
        return Ok(());
    }
    Err(Failure::new(format!("{url} answers {:?}", status.trim())))
}

/// The first line of the answer.
fn status(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn answered(answer: &'static str) -> Outcome {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/healthz", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut asked, mut byte) = (Vec::new(), [0]);
            // All of it: what is not read when a connection ends takes the answer with it.
            while !asked.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                asked.push(byte[0]);
            }
            assert!(asked.starts_with(b"GET /healthz HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let outcome = run(&url);
        server.join().unwrap();
        outcome
    }

    #[test]
    fn only_2xx_is_well() {
        assert!(answered("HTTP/1.1 200 OK\r\n\r\n").is_ok());
        assert!(answered("HTTP/1.1 503 Service Unavailable\r\n\r\n").is_err());
        assert!(answered("").is_err());
        for bad in ["", "http://", "https://127.0.0.1:1/", "http://127.0.0.1:1", "http://name:1/"] {
            assert!(run(bad).unwrap_err().is(Kind::Usage), "{bad}");
        }
    }
}
