//! The S3 server, in a process of its own: neither its processor time nor its memory count for anybody else.
//!
//! In: this program, started again with `--serve-s3 FOLDER`. Out: a port, as the one line on its standard output; a
//! bucket whose objects are files, on the disk that the other servers use. Signatures, MD5 and sha256 are checked as S3
//! does it; nothing is flushed. Always: the server goes with whoever started it, for it ends with its standard input.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

use super::THRESHOLD_BYTES;
use crate::{Result, process, servers};

/// The bucket that is there.
pub const BUCKET: &str = "claims";
/// Who may write in it.
pub const ACCESS_KEY_ID: &str = "walgate";
/// Its secret.
pub const SECRET_ACCESS_KEY: &str = "s3cr3t";

/// A running server.
pub struct Store {
    folder: tempfile::TempDir,
    server: Child,
    port: u16,
}

impl Store {
    /// With an empty bucket, on a free port.
    pub fn start() -> Result<Store> {
        let folder = servers::folder()?;
        fs::create_dir(folder.path().join(BUCKET))?;
        let mut server = Command::new(std::env::current_exe()?)
            .arg("--serve-s3")
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(server.stdout.take().expect("it is piped")).read_line(&mut line)?;
        let port = line.trim().parse().map_err(|_| "the S3 server has ended before it said its port")?;
        Ok(Store { folder, server, port })
    }

    /// `http://host:port`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What a configuration says of it.
    pub fn section(&self) -> String {
        format!(
            "\n[claim_check]\nstore = \"s3://{BUCKET}\"\nendpoint = \"{}\"\npath_style = true\n\
                region = \"us-east-1\"\naccess_key_id = \"{ACCESS_KEY_ID}\"\n\
                secret_access_key = \"{SECRET_ACCESS_KEY}\"\nthreshold_bytes = {THRESHOLD_BYTES}\n",
            self.endpoint()
        )
    }

    /// Where the object of a URI, or all objects under a prefix, are.
    pub fn path(&self, uri: &str) -> PathBuf {
        self.folder.path().join(uri.strip_prefix("s3://").unwrap_or(uri))
    }

    /// Removes all objects.
    pub fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(self.folder.path())? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        Ok(fs::create_dir(self.folder.path().join(BUCKET))?)
    }

    /// The processor time that it has taken so far.
    pub fn cpu_seconds(&self) -> Result<f64> {
        process::cpu_seconds(self.server.id())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Serves the folders in `folder` as buckets, until the standard input ends.
pub fn serve(folder: &Path) -> Result<()> {
    let mut service = S3ServiceBuilder::new(FileSystem::new(folder).map_err(|error| format!("{error:?}"))?);
    service.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
    let service = service.build();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
    println!("{}", listener.local_addr()?.port());
    std::io::stdout().flush()?;
    runtime.spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                // A client that goes away is no failure of the server's.
                let _ = socket.set_nodelay(true);
                let connection = Builder::new(TokioExecutor::new());
                let _ = connection.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    runtime.shutdown_background();
    Ok(())
}
