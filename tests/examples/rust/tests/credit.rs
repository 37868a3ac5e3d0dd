// Run: cpsim exec --rule settled-once --rule no-slot-leaked -- cargo test --offline
// The tests run at the same time, each with slots of its own.

use credit::{run_job, send, Error};
use std::process::Command;

fn daemon() -> String {
    std::env::var("CREDITPIGGY_ENDPOINT").expect("run this with cpsim exec")
}

/// Runs cpsim, which finds in the environment where the server is; what it says is shown if it fails.
fn cpsim(arguments: &[&str]) {
    let output = Command::new("cpsim").args(arguments).output().expect("cpsim is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
}

fn expect(arguments: &[&str]) {
    let control = std::env::var("CREDITPIGGY_CONTROL").expect("run this with cpsim exec");
    cpsim(&[&["expect", &control], arguments].concat());
}

#[test]
fn a_job_that_succeeds_is_credited() {
    run_job(&daemon(), "job-1", "worker-7", || Ok(1000)).unwrap();
    let terms = ["--machine", "worker-7", "--credits", "10", "--counters", "job/success=1,job/events=1000"];
    expect(&[&["claimed", "job-1"], &terms[..]].concat());
}

#[test]
fn a_job_that_fails_is_discarded() {
    run_job(&daemon(), "job-2", "worker-7", || Err("disk full".into())).unwrap();
    expect(&["discarded", "job-2", "--reason", "disk full"]);
}

#[test]
fn a_lost_answer_is_told_apart_from_a_refusal() {
    cpsim(&["faults", "add", "daemon.lose-reply:kind=claim,slot=job-3", "daemon.error:slot=job-4"]);
    assert!(matches!(run_job(&daemon(), "job-3", "worker-7", || Ok(5)), Err(Error::InDoubt(_))));
    assert!(matches!(run_job(&daemon(), "job-4", "worker-7", || panic!("it runs")), Err(Error::NotTaken(_))));
    expect(&["claimed", "job-3"]);
}

#[test]
fn nothing_is_sent_that_would_forge_a_field() {
    let forged = send(&daemon(), "alloc", &[("slot", &"job-5,credits=9999")]);
    assert!(matches!(forged, Err(Error::NotTaken(_))));
}
