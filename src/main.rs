//! The process: reads the command line, runs one command, says what went wrong, sets the exit code.

use std::process::ExitCode;

use clap::Parser;
use walgate::command::{self, Cli, Failure};

/// librdkafka allocates several times a message, on one thread, and frees on another: glibc's
/// allocator took a quarter of the sink's CPU for that (perf). It replaces malloc for C as well.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    command::log::start(cli.log_format, cli.command.log_level());
    // Pipelines have threads and runtimes of their own: this one has the signals and the admin port.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .expect("threads can be started");
    let done = runtime.block_on(command::run(cli));
    // A blocking call into a dead broker may last: nobody waits for it.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::Found) {
                eprintln!("{failure}");
            }
            match failure {
                Failure::Usage(_) => ExitCode::from(2),
                Failure::Found | Failure::Error(_) => ExitCode::FAILURE,
            }
        }
    }
}
