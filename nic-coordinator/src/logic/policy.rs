//! Who may listen where and connect from where: what the kernel would enforce if it saw the connection.

use std::collections::BTreeSet;

use ring::msg::{Addr, Status};

use super::functions::Identity;

/// Ports below this one are for user 0 only, as `net.ipv4.ip_unprivileged_port_start` says by default.
pub const UNPRIVILEGED_PORT_START: u16 = 1024;

/// Whether `who` may listen on `addr`.
///
/// # Errors
/// The status of the refusal.
pub fn may_listen(who: &Identity, addr: &Addr) -> Result<(), Status> {
    if addr.port == 0 {
        return Err(Status::BadRequest);
    }
    may_use_port(who, addr.port)
}

/// Whether `who` may connect to `dst` and call itself `src`.
///
/// All is on one host, so a client's address is either the very address it connects to, or a loopback address
/// towards a loopback address.
///
/// # Errors
/// The status of the refusal.
pub fn may_connect(who: &Identity, dst: &Addr, src: &Addr) -> Result<(), Status> {
    if dst.port == 0 || dst.is_wildcard() {
        return Err(Status::BadRequest);
    }
    if src.port == 0 || src.is_v4() != dst.is_v4() {
        return Err(Status::Denied);
    }
    let loopback = src.is_loopback() && dst.is_loopback();
    if !loopback && src.ip != dst.ip {
        return Err(Status::Denied);
    }
    may_use_port(who, src.port)
}

/// Whether `who` may connect to `dst` on another host and call itself `src`, where `own` are the addresses of this one.
///
/// # Errors
/// The status of the refusal.
pub fn may_call(who: &Identity, dst: &Addr, src: &Addr, own: &BTreeSet<[u8; 16]>) -> Result<(), Status> {
    if dst.port == 0 || dst.is_wildcard() {
        return Err(Status::BadRequest);
    }
    if src.port == 0 || src.is_v4() != dst.is_v4() || !own.contains(&src.ip) {
        return Err(Status::Denied);
    }
    may_use_port(who, src.port)
}

/// Whether a client on another host may connect to `dst` here and call itself `src`. Its own host's coordinator has seen to what it may call itself
/// there.
///
/// # Errors
/// The status of the refusal.
pub fn may_be_called(dst: &Addr, src: &Addr, own: &BTreeSet<[u8; 16]>) -> Result<(), Status> {
    if dst.port == 0 || src.port == 0 || src.is_v4() != dst.is_v4() {
        return Err(Status::BadRequest);
    }
    let elsewhere = !src.is_loopback() && !src.is_wildcard() && !own.contains(&src.ip);
    if own.contains(&dst.ip) && elsewhere { Ok(()) } else { Err(Status::Denied) }
}

fn may_use_port(who: &Identity, port: u16) -> Result<(), Status> {
    if port < UNPRIVILEGED_PORT_START && who.uid != 0 { Err(Status::Denied) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32) -> Identity {
        Identity { group: 1, uid, pid: 1, netns: 1 }
    }
    fn lo(port: u16) -> Addr {
        Addr::v4([127, 0, 0, 1], port)
    }

    #[test]
    fn ports_below_1024_are_for_root() {
        assert_eq!(may_listen(&user(1000), &lo(1023)), Err(Status::Denied));
        assert_eq!(may_listen(&user(1000), &lo(1024)), Ok(()));
        assert_eq!(may_listen(&user(0), &lo(80)), Ok(()));
        assert_eq!(may_connect(&user(1000), &lo(80), &lo(1023)), Err(Status::Denied));
        assert_eq!(may_connect(&user(0), &lo(80), &lo(1023)), Ok(()));
    }

    #[test]
    fn a_client_may_only_claim_an_address_of_this_very_path() {
        let outside = |port| Addr::v4([10, 0, 0, 5], port);
        let other = |port| Addr::v4([10, 0, 0, 6], port);
        let v6 = Addr { ip: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], port: 4000 };
        let who = user(1000);
        assert_eq!(may_connect(&who, &lo(80), &Addr::v4([127, 9, 9, 9], 4000)), Ok(()));
        assert_eq!(may_connect(&who, &outside(80), &outside(4000)), Ok(()));
        assert_eq!(may_connect(&who, &outside(80), &other(4000)), Err(Status::Denied));
        assert_eq!(may_connect(&who, &outside(80), &lo(4000)), Err(Status::Denied));
        assert_eq!(may_connect(&who, &lo(80), &outside(4000)), Err(Status::Denied));
        assert_eq!(may_connect(&who, &lo(80), &v6), Err(Status::Denied));
        assert_eq!(may_connect(&who, &lo(80), &lo(0)), Err(Status::Denied));
    }

    #[test]
    fn between_hosts_each_has_its_own_addresses() {
        let here = |port| Addr::v4([10, 0, 0, 1], port);
        let there = |port| Addr::v4([10, 0, 0, 2], port);
        let own = BTreeSet::from([here(0).ip]);
        let (who, root) = (user(1000), user(0));
        assert_eq!(may_call(&who, &there(80), &here(4000), &own), Ok(()));
        assert_eq!(may_call(&who, &there(80), &here(1023), &own), Err(Status::Denied));
        assert_eq!(may_call(&root, &there(80), &here(1023), &own), Ok(()));
        assert_eq!(may_call(&root, &there(80), &there(4000), &own), Err(Status::Denied));
        assert_eq!(may_call(&root, &there(80), &lo(4000), &own), Err(Status::Denied));
        assert_eq!(may_call(&root, &there(0), &here(4000), &own), Err(Status::BadRequest));
        assert_eq!(may_be_called(&here(80), &there(4000), &own), Ok(()));
        assert_eq!(may_be_called(&here(80), &there(0), &own), Err(Status::BadRequest));
        for (dst, src) in
            [(lo(80), there(4000)), (there(80), there(4000)), (here(80), here(4000)), (here(80), lo(4000))]
        {
            assert_eq!(may_be_called(&dst, &src, &own), Err(Status::Denied), "{dst} {src}");
        }
    }

    #[test]
    fn wildcards_and_port_0_are_no_destinations() {
        let who = user(0);
        assert_eq!(may_connect(&who, &lo(0), &lo(4000)), Err(Status::BadRequest));
        assert_eq!(
            may_connect(&who, &Addr::v4([0; 4], 80), &Addr::v4([0; 4], 4000)),
            Err(Status::BadRequest)
        );
        assert_eq!(may_listen(&who, &lo(0)), Err(Status::BadRequest));
    }
}
