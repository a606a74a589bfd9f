use std::process::ExitCode;

fn main() -> ExitCode {
    inspectd::commands::main()
}
