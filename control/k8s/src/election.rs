//! Which of several controllers decides: the one that holds a Lease.
//!
//! 1. The clocks of others are not believed: a lease has ended when it did not change for its whole duration while this
//!    process looked at it.
//! 2. The holder stops before another one can begin: its term is counted from before the last renewal was asked for, by
//!    its own clock, and is shorter than the lease. A process that was stopped finds its term over when it wakes.
//! 3. Every change is a compare-and-swap of the `resourceVersion`, and each new holder has a higher `leaseTransitions`.

use crate::{kubernetes::Kubernetes, server::Server, server::Verb};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use std::time::Duration;
use store::{Error, ErrorKind, Mandate, OPERATION_TIMEOUT, Result};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

/// After this time without a change another one takes the lease: a volume whose owner died with the leader waits for it.
const LEASE: Duration = Duration::from_secs(8);
/// After this time without a renewal the holder does not decide any more (invariant 2).
const TERM: Duration = Duration::from_secs(5);
/// Between two renewals, and between two looks at the lease of another.
const RENEWAL: Duration = Duration::from_secs(1);

/// A candidate for a lease.
#[derive(Clone, Debug)]
pub struct Election {
    server: Server,
    /// The path of all leases of the namespace.
    folder: String,
    name: String,
    identity: String,
}

/// The lease of another as it was seen last, and since when it is so.
struct Seen {
    revision: Option<String>,
    since: Instant,
}

/// This process leads. Dropping it gives up; the lease then ends by itself.
#[derive(Debug)]
pub struct Term {
    election: Election,
    number: i32,
    until: watch::Receiver<Instant>,
    renewal: JoinHandle<()>,
}

impl Kubernetes {
    /// A candidate, by an identity that no other process ever has.
    pub fn election(&self, namespace: &str, name: &str, identity: &str) -> Election {
        Election {
            server: self.server.clone(),
            folder: format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
            name: name.to_owned(),
            identity: identity.to_owned(),
        }
    }
}

impl Election {
    /// Waits until this process leads.
    pub async fn lead(&self) -> Term {
        let mut seen = Seen { revision: None, since: Instant::now() };
        let mut said = false;
        loop {
            let asked = Instant::now();
            match self.try_lead(&mut seen).await {
                Ok(Some(lease)) => return self.term(lease, asked),
                Ok(None) => said = false,
                // Another was faster.
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) if !said => {
                    tracing::warn!(lease = self.name, %error, "cannot find out who leads; it is tried again");
                    said = true;
                }
                Err(_) => {}
            }
            sleep(RENEWAL).await;
        }
    }

    /// Takes the lease if it is free; none if another holds it.
    async fn try_lead(&self, seen: &mut Seen) -> Result<Option<Lease>> {
        let Some(lease) = self.get().await? else {
            return self.write(&Verb::Create, &self.folder, self.next(None)).await.map(Some);
        };
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        // Ours: a write whose answer was lost.
        if !holder.is_empty() && holder != self.identity {
            if seen.revision != lease.metadata.resource_version {
                *seen = Seen { revision: lease.metadata.resource_version, since: Instant::now() };
                return Ok(None);
            }
            // Invariant 1.
            if seen.since.elapsed() < LEASE {
                return Ok(None);
            }
        }
        let next = self.next(Some(&lease));
        self.replace(next).await.map(Some)
    }

    async fn get(&self) -> Result<Option<Lease>> {
        let path = format!("{}/{}", self.folder, self.name);
        match self.server.ask(&Verb::Get, &path, Instant::now() + OPERATION_TIMEOUT).await {
            Ok(lease) => Ok(Some(lease)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn replace(&self, lease: Lease) -> Result<Lease> {
        let path = format!("{}/{}", self.folder, self.name);
        self.write(&Verb::Replace, &path, lease).await
    }

    async fn write(
        &self,
        verb: &(dyn Fn(serde_json::Value) -> Verb + Sync),
        path: &str,
        lease: Lease,
    ) -> Result<Lease> {
        let value = serde_json::to_value(lease)
            .map_err(|cause| Error::because(ErrorKind::Invalid, "a lease cannot be written down", cause))?;
        self.server.ask(&verb(value), path, Instant::now() + OPERATION_TIMEOUT).await
    }

    /// The lease as this process begins to hold it.
    fn next(&self, before: Option<&Lease>) -> Lease {
        let transitions = before.and_then(|lease| lease.spec.as_ref()?.lease_transitions);
        let now = Some(MicroTime(Timestamp::now()));
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                resource_version: before.and_then(|lease| lease.metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
                lease_transitions: Some(transitions.map_or(0, |count| count.saturating_add(1))),
                acquire_time: now.clone(),
                renew_time: now,
                ..LeaseSpec::default()
            }),
        }
    }

    fn term(&self, lease: Lease, asked: Instant) -> Term {
        let number = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default();
        let (sender, until) = watch::channel(asked + TERM);
        let renewal = tokio::spawn(self.clone().renew(lease, sender));
        Term { election: self.clone(), number, until, renewal }
    }

    /// Renews the lease until it is lost.
    async fn renew(self, mut lease: Lease, until: watch::Sender<Instant>) {
        loop {
            sleep(RENEWAL).await;
            let asked = Instant::now();
            let end = *until.borrow();
            if asked >= end {
                return;
            }
            if let Some(spec) = &mut lease.spec {
                spec.renew_time = Some(MicroTime(Timestamp::now()));
            }
            match tokio::time::timeout_at(end, self.replace(lease.clone())).await {
                Ok(Ok(renewed)) => {
                    lease = renewed;
                    until.send_replace(asked + TERM);
                }
                // A renewal whose answer was lost makes the next one a conflict with itself.
                Ok(Err(error)) if error.kind() == ErrorKind::Conflict => match self.get().await {
                    Ok(Some(found)) if self.holds(&found) => lease = found,
                    Ok(_) => {
                        until.send_replace(asked);
                        return;
                    }
                    Err(_) => {}
                },
                Ok(Err(error)) => tracing::warn!(%error, "the lease is not renewed; it is tried again"),
                Err(_) => return,
            }
        }
    }

    fn holds(&self, lease: &Lease) -> bool {
        lease.spec.as_ref().is_some_and(|spec| spec.holder_identity.as_ref() == Some(&self.identity))
    }
}

impl Term {
    /// Which term it is: higher than every one before.
    pub const fn number(&self) -> i32 {
        self.number
    }

    /// Until when this process may decide, as it is known by now.
    pub fn until(&self) -> watch::Receiver<Instant> {
        self.until.clone()
    }

    /// The mandate that lasts as long as this term.
    pub fn mandate(&self) -> Mandate {
        Mandate::until(self.until())
    }

    /// Waits until this process leads no more.
    pub async fn lost(&self) {
        loop {
            let until = *self.until.borrow();
            if Instant::now() >= until {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// Gives the lease back, so that nobody has to wait for its end.
    pub async fn release(self) {
        self.renewal.abort();
        let released = async {
            let Some(mut lease) = self.election.get().await? else { return Ok(()) };
            if let Some(spec) = &mut lease.spec
                && spec.holder_identity.as_ref() == Some(&self.election.identity)
            {
                spec.holder_identity = Some(String::new());
                self.election.replace(lease).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = released.await {
            tracing::warn!(%error, "the lease was not given back; it ends by itself");
        }
    }
}

impl Drop for Term {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}
