//! The process: reads the command line, runs one command, says what went wrong, sets the exit code.

use std::process::ExitCode;

use clap::Parser;
use walgate::command::{self, Cli, Failure};

fn main() -> ExitCode {
    let cli = Cli::parse();
    command::log::start(cli.log_format, cli.command.log_level());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .expect("threads can be started");
    let done = runtime.block_on(command::run(cli));
    // A blocking call into a dead broker may last: nobody waits for it.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            match failure {
                Failure::Usage(_) => ExitCode::from(2),
                Failure::Found | Failure::Error(_) => ExitCode::FAILURE,
            }
        }
    }
}
