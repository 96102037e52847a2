//! The copying tasks. One call to the guest at a time for each stream, so what is on the way is bounded.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use super::remote::{Output, Remote};
use super::sink::Sink;

/// Most that is on the way on one stream. Half of a fifo, so that one of these goes while the next is fetched.
const CHUNK: u32 = 32 * 1024;

/// Copies to `sink` until the guest has no more, then closes it by dropping it.
pub(super) async fn output(remote: &dyn Remote, output: Output, sink: Sink) {
    let mut sink = Some(sink);
    loop {
        let data = match remote.read(output, CHUNK).await {
            Ok(data) if data.is_empty() => return,
            Ok(data) => data,
            // A kata agent answers the end of a stream like this, and a guest that is gone has nothing more to say.
            Err(error) => return log::debug!("{output:?} ends: {}", error.chain()),
        };
        let Some(open) = &mut sink else { continue };
        let written = match open.write_all(&data).await {
            Ok(()) => open.flush().await,
            failed => failed,
        };
        if let Err(error) = written {
            // Only a logging program or a file can fail. The process must not hang for it: the rest is read and dropped.
            log::warn!("Could not write {output:?}, its rest is lost: {error}");
            sink = None;
        }
    }
}

/// Copies from `fifo` to the process until all writing ends are closed, then ends the process's stdin.
pub(super) async fn stdin(fifo: Option<pipe::Receiver>, remote: &dyn Remote) {
    if let Some(mut fifo) = fifo {
        let mut buffer = vec![0; CHUNK as usize];
        loop {
            match fifo.read(&mut buffer).await {
                Ok(0) => break,
                Ok(count) => {
                    if !write_all(remote, &buffer[..count]).await {
                        return;
                    }
                }
                Err(error) => {
                    log::warn!("Could not read stdin: {error}");
                    break;
                }
            }
        }
    }
    if let Err(error) = remote.close_stdin().await {
        log::debug!("Could not end stdin: {}", error.chain());
    }
}

/// Whether all of `data` was taken. If not, the process has ended or closed its stdin, which is no error.
async fn write_all(remote: &dyn Remote, mut data: &[u8]) -> bool {
    while !data.is_empty() {
        match remote.write(data.to_vec()).await {
            Ok(count) if count > 0 && count <= data.len() => data = &data[count..],
            Ok(count) => {
                log::debug!("The guest took {count} of {} bytes of stdin", data.len());
                return false;
            }
            Err(error) => {
                log::debug!("Could not pass stdin on: {}", error.chain());
                return false;
            }
        }
    }
    true
}
