//! A real S3 server of a test's own, in the tests' process, behind a line that can fail.
//!
//! In: a port. Out: a bucket whose objects are files. Always: requests are signed, and the signatures checked; on drop
//! nobody listens any more.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s::{S3Error, S3ErrorCode, S3Result};
use s3s_fs::FileSystem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::servers;

/// The bucket that is there.
pub const BUCKET: &str = "claims";
const ACCESS_KEY_ID: &str = "walgate";
const SECRET_ACCESS_KEY: &str = "s3cr3t";

/// The server, and the line to it.
pub struct S3 {
    folder: tempfile::TempDir,
    line: Arc<Line>,
    rights: Rights,
    port: u16,
    /// Ended on drop.
    runtime: Option<Runtime>,
}

/// What the line does to what is sent to the server.
#[derive(Default)]
struct Line {
    /// So many bytes pass, then the connection is cut, once; 0: never.
    cut_after: AtomicU64,
    /// Each read is held up so long, in milliseconds.
    delay_ms: AtomicU64,
    cuts: AtomicU64,
}

/// What the server refuses: by the operation's name, after so many that pass, with which answer.
#[derive(Clone, Default)]
struct Rights(Arc<Mutex<BTreeMap<&'static str, (u64, S3ErrorCode)>>>);

impl Rights {
    fn check(&self, operation: &str) -> S3Result<()> {
        let mut refused = self.0.lock().expect("no holder panics");
        match refused.get_mut(operation) {
            None => Ok(()),
            Some((0, code)) => Err(S3Error::new(code.clone())),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

/// Written out as `async_trait` has it. Whoever has no key is refused by the signature before.
impl S3Access for Rights {
    fn check<'s, 'c, 'x, 'f>(
        &'s self,
        context: &'c mut S3AccessContext<'x>,
    ) -> Pin<Box<dyn Future<Output = S3Result<()>> + Send + 'f>>
    where
        's: 'f,
        'c: 'f,
        'x: 'f,
        Self: 'f,
    {
        let known = context.credentials().map(|_| ()).ok_or_else(|| S3Error::new(S3ErrorCode::AccessDenied));
        let checked = known.and_then(|()| Rights::check(self, context.s3_op().name()));
        Box::pin(std::future::ready(checked))
    }
}

impl S3 {
    /// On a free port.
    pub fn start() -> Self {
        Self::start_at(servers::free_port())
    }

    /// On this port, where nobody listened so far.
    pub fn start_at(port: u16) -> Self {
        let folder = servers::folder("s3");
        std::fs::create_dir(folder.path().join(BUCKET)).expect("a test's folder can be written");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime for the server can be made");
        let mut service = S3ServiceBuilder::new(FileSystem::new(folder.path()).expect("a folder"));
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        let rights = Rights::default();
        service.set_access(rights.clone());
        let service = service.build();
        let line = Arc::new(Line::default());
        let (listener, behind) = runtime.block_on(async {
            let behind = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
            (TcpListener::bind(("127.0.0.1", port)).await.expect("nobody listens there"), behind)
        });
        let server = behind.local_addr().expect("it is bound");
        runtime.spawn(async move {
            while let Ok((socket, _)) = behind.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        let shared = line.clone();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let line = shared.clone();
                tokio::spawn(async move {
                    if let Ok(upstream) = TcpStream::connect(server).await {
                        line.carry(socket, upstream).await;
                    }
                });
            }
        });
        Self { folder, line, rights, port, runtime: Some(runtime) }
    }

    /// The `[claim_check]` section for a store at this port.
    pub fn section_at(port: u16, threshold_bytes: usize) -> String {
        format!(
            "[claim_check]\nstore = \"s3://{BUCKET}/some/prefix\"\nendpoint = \"http://127.0.0.1:{port}\"\n\
             path_style = true\nregion = \"us-east-1\"\naccess_key_id = \"{ACCESS_KEY_ID}\"\n\
             secret_access_key = \"{SECRET_ACCESS_KEY}\"\nthreshold_bytes = {threshold_bytes}\n"
        )
    }

    /// The `[claim_check]` section for it.
    pub fn section(&self, threshold_bytes: usize) -> String {
        Self::section_at(self.port, threshold_bytes)
    }

    /// What tools of AWS find it by.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ENDPOINT_URL_S3", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY.to_owned()),
        ]
    }

    /// From now on refuses this operation, after so many that pass, with this answer.
    pub fn refuse(&self, operation: &'static str, after: u64, code: S3ErrorCode) {
        self.rights.0.lock().expect("no holder panics").insert(operation, (after, code));
    }

    /// Refuses nothing any more.
    pub fn allow(&self) {
        self.rights.0.lock().expect("no holder panics").clear();
    }

    /// Cuts the connection, once, after so many bytes that are sent to the server.
    pub fn cut_after(&self, bytes: u64) {
        self.line.cut_after.store(bytes, Ordering::SeqCst);
    }

    /// How often it was cut.
    pub fn cuts(&self) -> u64 {
        self.line.cuts.load(Ordering::SeqCst)
    }

    /// Holds up every piece of what is sent to the server.
    pub fn delay(&self, time: Duration) {
        let time = u64::try_from(time.as_millis()).expect("a short time");
        self.line.delay_ms.store(time, Ordering::SeqCst);
    }

    /// The file of the object that a reference names.
    #[track_caller]
    pub fn path(&self, uri: &str) -> PathBuf {
        let key = uri.strip_prefix("s3://").unwrap_or_else(|| panic!("no reference to S3: {uri}"));
        self.folder.path().join(key)
    }

    /// The objects' files.
    pub fn objects(&self) -> Vec<PathBuf> {
        files(&self.folder.path().join(BUCKET))
    }

    /// Lets the server forget its checksums: what is then put in an object's file, it takes for what was stored.
    pub fn forget_checksums(&self) {
        let entries = std::fs::read_dir(self.folder.path()).expect("the server's folder");
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.to_string_lossy().ends_with(".internal.json") {
                std::fs::remove_file(&path).expect("the server's folder");
            }
        }
    }

    /// The parts of uploads that were neither completed nor aborted.
    pub fn parts(&self) -> usize {
        let entries = std::fs::read_dir(self.folder.path()).expect("the server's folder");
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.starts_with(".upload_id-")).count()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Line {
    async fn carry(&self, client: TcpStream, server: TcpStream) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let there = async {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                let delay = self.delay_ms.load(Ordering::SeqCst);
                if delay > 0 {
                    tokio::time::sleep(Duration::from_millis(delay)).await;
                }
                let bytes = u64::try_from(count).expect("a buffer's length");
                let left = self.cut_after.load(Ordering::SeqCst);
                if left > 0 {
                    self.cut_after.store(left.saturating_sub(bytes), Ordering::SeqCst);
                    if left <= bytes {
                        self.cuts.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                }
                if to_server.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        };
        let back = async {
            let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
        };
        // Whichever ends takes both directions with it.
        tokio::select! {
            () = there => {}
            () = back => {}
        }
    }
}

/// All files below a folder, sorted.
pub fn files(folder: &std::path::Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}
