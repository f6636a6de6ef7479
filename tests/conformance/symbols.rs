//! Which function of the C library an [`Op`] calls.

use harness::wire::{ExecBy, Op, PollBy, RecvBy, SendBy, SpawnBy};

/// The functions; none for what only steers the worker.
pub fn of(op: &Op) -> &'static [&'static str] {
    match op {
        Op::Socket { .. } => &["socket"],
        Op::Bind { .. } => &["bind"],
        Op::Listen { .. } => &["listen"],
        Op::Connect { .. } | Op::Knock { .. } => &["connect"],
        Op::Accept { flags: None, .. } => &["accept"],
        Op::Accept { .. } => &["accept4"],
        Op::Getsockname { .. } => &["getsockname"],
        Op::Getpeername { .. } => &["getpeername"],
        Op::Send { by, .. } | Op::Pump { by, .. } => send(*by),
        Op::Recv { by, .. } | Op::Drain { by, .. } => recv(*by),
        Op::Fill { .. } => &["send"],
        Op::SendTo { .. } => &["sendto"],
        Op::SendMessage { .. } => &["sendmsg"],
        Op::RecvMessage { .. } => &["recvmsg"],
        Op::Shutdown { .. } => &["shutdown"],
        Op::Close { .. } => &["close"],
        Op::CloseRange { .. } => &["close_range"],
        Op::Closefrom { .. } => &["closefrom"],
        Op::Dup { .. } => &["dup"],
        Op::Dup2 { .. } => &["dup2"],
        Op::Dup3 { .. } => &["dup3"],
        Op::Fcntl { .. } => &["fcntl"],
        Op::Ioctl { .. } => &["ioctl"],
        Op::Getsockopt { .. } | Op::Peercred { .. } => &["getsockopt"],
        Op::Setsockopt { .. } | Op::AttachFilter { .. } => &["setsockopt"],
        Op::Poll { by, .. } => poll(*by),
        Op::EpollCreate { .. } => &["epoll_create1"],
        Op::EpollCtl { .. } => &["epoll_ctl"],
        Op::EpollWait { .. } => &["epoll_wait"],
        Op::EpollPwait { ns: false, .. } => &["epoll_pwait"],
        Op::EpollPwait { .. } => &["epoll_pwait2"],
        Op::Pipe => &["pipe"],
        Op::Pipe2 { .. } => &["pipe2"],
        Op::Socketpair { .. } => &["socketpair"],
        Op::Mkfifo { .. } => &["mkfifo"],
        Op::Sendfile { .. } => &["sendfile"],
        Op::Fork { .. } => &["fork"],
        Op::Daemon { .. } => &["daemon"],
        Op::Exec { by, .. } => exec(*by),
        Op::Spawn { by, .. } => spawn(*by),
        Op::Dlopen { .. } => &["dlopen"],
        Op::Start { op } => of(op),
        _ => &[],
    }
}

fn send(by: SendBy) -> &'static [&'static str] {
    match by {
        SendBy::Write => &["write"],
        SendBy::Writev(_) => &["writev"],
        SendBy::Send => &["send"],
        SendBy::Sendto => &["sendto"],
        SendBy::Sendmsg(_) => &["sendmsg"],
        SendBy::Sendmmsg(_) => &["sendmmsg"],
    }
}

fn recv(by: RecvBy) -> &'static [&'static str] {
    match by {
        RecvBy::Read => &["read"],
        RecvBy::Readv(_) => &["readv"],
        RecvBy::Recv => &["recv"],
        RecvBy::Recvfrom => &["recvfrom"],
        RecvBy::Recvmsg(_) => &["recvmsg"],
        RecvBy::Recvmmsg(_) => &["recvmmsg"],
        RecvBy::ReadChk => &["__read_chk"],
        RecvBy::RecvChk => &["__recv_chk"],
        RecvBy::RecvfromChk => &["__recvfrom_chk"],
    }
}

fn poll(by: PollBy) -> &'static [&'static str] {
    match by {
        PollBy::Poll => &["poll"],
        PollBy::Ppoll => &["ppoll"],
        PollBy::Select => &["select"],
        PollBy::SelectChk => &["select", "__fdelt_chk"],
        PollBy::Pselect => &["pselect"],
        PollBy::PollChk => &["__poll_chk"],
        PollBy::PpollChk => &["__ppoll_chk"],
    }
}

fn exec(by: ExecBy) -> &'static [&'static str] {
    match by {
        ExecBy::Execve => &["execve"],
        ExecBy::Execv => &["execv"],
        ExecBy::Execvp => &["execvp"],
        ExecBy::Fexecve => &["fexecve"],
    }
}

fn spawn(by: SpawnBy) -> &'static [&'static str] {
    match by {
        SpawnBy::Fork => &["fork", "execve"],
        SpawnBy::Vfork => &["vfork", "execve"],
        SpawnBy::PosixSpawn => &["posix_spawn"],
        SpawnBy::PosixSpawnp => &["posix_spawnp"],
    }
}
