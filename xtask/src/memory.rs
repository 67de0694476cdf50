//! What the allocator does with memory that is freed.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// How the allocator is told, in milliseconds.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";

/// Starts this program anew, with the same arguments in the same process, so that freed memory stays with it for a second.
///
/// By itself the allocator gives it back after 10 ms, and a campaign wants it again at once: the kernel clears it each time,
/// which was one twentieth of all time. The allocator reads its options before any code of this program runs, so that
/// only who starts it can set them. Whoever set this one is left in peace.
pub(crate) fn keep_freed() {
    if std::env::var_os(PURGE_DELAY).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    let mut again = Command::new(program);
    again.arg0(called).args(arguments).env(PURGE_DELAY, "1000");
    // This returns where it fails, and then all is as it was, only slower.
    drop(again.exec());
}
