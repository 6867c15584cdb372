//! The plain TCP ports of the echo app.

use std::sync::Arc;

use anyhow::Result;
use tokio::{
    io::{self, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::Me;
use crate::payload::Hash;

/// Sends back what it is sent, then ends its half.
pub(super) async fn echo(stream: TcpStream) -> Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    io::copy(&mut reader, &mut writer).await?;
    Ok(writer.shutdown().await?)
}

/// Speaks before the client does.
pub(super) async fn banner(mut stream: TcpStream, me: Arc<Me>) -> Result<()> {
    let greeting = format!("220 {} ready\r\n", me.pod);
    stream.write_all(greeting.as_bytes()).await?;
    echo(stream).await
}

/// Answers only when the client has ended its half.
pub(super) async fn summary(mut stream: TcpStream) -> Result<()> {
    let mut hash = Hash::default();
    let mut total = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        total += read;
    }
    stream
        .write_all(format!("{total} {}\n", hash.finish()).as_bytes())
        .await?;
    Ok(stream.shutdown().await?)
}
