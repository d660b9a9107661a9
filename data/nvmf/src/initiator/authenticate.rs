//! The messages of an authentication on one connected queue: the host's state machine over `AUTH_SEND` and `AUTH_RECEIVE`.

use super::queue::{Queue, Submission};
use crate::auth::{self, Host, Parties};
use crate::error::{ErrorKind, Unauthenticated};
use crate::wire::fabrics::{self, AUTH_LEN_MAX};
use rt::{DmaBuf, DmaBytes};
use std::rc::Rc;

/// Proves the key to the target, and has it proved by the target.
pub(super) async fn run(queue: &Rc<Queue>, parties: Parties) -> Result<(), ErrorKind> {
    let mut transaction = [0; 2];
    rt::random_bytes(&mut transaction);
    let host = Host::new(parties, u16::from_le_bytes(transaction), auth::challenge());
    send(queue, &host.negotiate()).await?;
    let challenge = receive(queue).await?;
    send(queue, &host.reply(&challenge).map_err(ErrorKind::Unauthenticated)?).await?;
    match host.judge(&receive(queue).await?) {
        Ok(()) => send(queue, &host.verdict(true)).await,
        Err(why) => {
            if !matches!(why, Unauthenticated::Refused(_)) {
                // One that is not trusted may not even want to know.
                let _told = send(queue, &host.verdict(false)).await;
            }
            Err(ErrorKind::Unauthenticated(why))
        }
    }
}

async fn send(queue: &Rc<Queue>, message: &[u8]) -> Result<(), ErrorKind> {
    let len = u32::try_from(message.len()).expect("messages are short");
    let send = Some(DmaBytes::copy_of(message));
    command(queue, Submission { send, ..Submission::new(fabrics::auth_send(len)) }).await.map(|_| ())
}

async fn receive(queue: &Rc<Queue>) -> Result<DmaBuf, ErrorKind> {
    let receive = Some(DmaBuf::new(AUTH_LEN_MAX as usize));
    let data = command(queue, Submission { receive, ..Submission::new(fabrics::auth_receive(AUTH_LEN_MAX)) })
        .await?;
    data.ok_or(ErrorKind::Unauthenticated(Unauthenticated::Nonsense))
}

async fn command(queue: &Rc<Queue>, submission: Submission) -> Result<Option<DmaBuf>, ErrorKind> {
    let answer = queue.submit(submission).await.map_err(ErrorKind::of_status)?;
    answer.outcome.map_err(ErrorKind::Refused)?;
    Ok(answer.data)
}
