//! A client of CreditPiggy's daemon, and a job runner that has each job credited. It needs nothing but std.

use std::fmt::Display;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

#[derive(Debug, PartialEq)]
pub enum Error {
    /// It was certainly not taken, and may be sent again.
    NotTaken(String),
    /// No answer came: it may have been taken all the same, and must not be sent again.
    InDoubt(String),
}

/// Sends one command to the daemon at the path of a UNIX socket.
pub fn send(endpoint: &str, kind: &str, fields: &[(&str, &dyn Display)]) -> Result<(), Error> {
    let mut frame = kind.to_string();
    for (name, value) in fields {
        let value = value.to_string();
        if [name, value.as_str()].iter().any(|part| part.contains(|c: char| c == ',' || c == '=' || c.is_control())) {
            return Err(Error::NotTaken(format!("there is no escaping: {name}={value}")));
        }
        frame += &format!(",{name}={value}");
    }
    if frame.len() > 1500 {
        return Err(Error::NotTaken("more than 1,500 bytes, which the daemon would cut".into()));
    }
    let mut daemon = UnixStream::connect(endpoint).map_err(|error| Error::NotTaken(format!("{endpoint}: {error}")))?;
    let mut answer = String::new();
    let exchanged = daemon
        .set_read_timeout(Some(Duration::from_secs(10)))
        .and_then(|()| daemon.write_all(frame.as_bytes()))
        .and_then(|()| daemon.read_to_string(&mut answer)); // the daemon closes after its answer
    match answer.as_str() {
        "OK" => Ok(()),
        "ER" => Err(Error::NotTaken(frame)),
        _ => Err(Error::InDoubt(format!("{frame}: {exchanged:?}"))),
    }
}

/// Does a job's work, which returns a number of events, and has the machine credited if it succeeds.
pub fn run_job(
    endpoint: &str,
    job: &str,
    machine: &str,
    work: impl FnOnce() -> Result<u64, String>,
) -> Result<(), Error> {
    send(endpoint, "alloc", &[("slot", &job), ("min", &1), ("max", &10)])?;
    match work() {
        Ok(events) => {
            send(endpoint, "counters", &[("slot", &job), ("job/success", &1), ("job/events", &events)])?;
            send(endpoint, "claim", &[("slot", &job), ("machine", &machine), ("credits", &events.div_ceil(100))])
        }
        Err(reason) => send(endpoint, "discard", &[("slot", &job), ("reason", &reason)]),
    }
}
