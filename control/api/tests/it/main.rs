//! The API over real HTTP, with the embedded store behind it. Engines are played by writing what they would report.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cluster;
mod document;
mod requests;
