use super::*;
use proptest::prelude::*;
use std::net::SocketAddrV4;

/// An answer with these records, each under a name as it stands on the wire.
fn answer(records: &[(&[u8], u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![0, 0, 0x84, 0, 0, 0, 0, records.len() as u8, 0, 0, 0, 0];
    for (name, kind, data) in records {
        message.extend_from_slice(name);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&[0x80, 1, 0, 0, 0, 120]);
        message.extend_from_slice(&(data.len() as u16).to_be_bytes());
        message.extend_from_slice(data);
    }
    message
}

fn barn() -> Vec<u8> {
    name("barn.local").unwrap()
}

#[test]
fn local_names_are_told_from_others() {
    for local in ["barn.local", "BARN.Local.", "a.b.local"] {
        assert!(is_local(local), "{local}");
    }
    for other in ["local", ".loca", "barn.localhost", "barn.example.com", "", "ä.lokal"] {
        assert!(!is_local(other), "{other}");
    }
}

#[test]
fn both_kinds_of_address_are_read_and_nothing_else() {
    let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let text = name("other.local").unwrap();
    let message = answer(&[
        (&barn(), kind::A, &[192, 0, 2, 7]),
        (&text, kind::A, &[192, 0, 2, 8]),
        (&barn(), 16, b"hello"),
        (&barn(), kind::A, &[224, 0, 0, 1]),
        (&barn(), kind::A, &[1, 2, 3]),
        // The name again, as a pointer to the first one.
        (&[0xc0, 12], kind::AAAA, &v6),
    ]);
    let found = addresses(&message, "Barn.local.");
    assert_eq!(found, [IpAddr::from([192, 0, 2, 7]), IpAddr::from(v6)]);
    assert!(addresses(&message, "mill.local").is_empty());
    // Our own question is no answer.
    assert!(addresses(&question("barn.local").unwrap(), "barn.local").is_empty());
}

#[test]
fn pointers_in_a_circle_and_names_without_end_are_refused() {
    for circle in [&[0xc0, 12][..], &[0xc0, 14, 0xc0, 12], &[1, b'a', 0xc0, 12], &[0xc0, 200], &[0x40, 0]] {
        assert!(
            addresses(&answer(&[(circle, kind::A, &[192, 0, 2, 7])]), "a.local").is_empty(),
            "{circle:?}"
        );
    }
    let long = [63; 64].repeat(5);
    assert!(addresses(&answer(&[(&long, kind::A, &[192, 0, 2, 7])]), "a.local").is_empty());
    assert_eq!(name(&"a".repeat(64)), None);
    assert_eq!(name(&["a".repeat(60).as_str(); 5].join(".")), None);
    assert_eq!(name("a..local"), None);
}

#[test]
fn interfaces_are_read_from_the_system() {
    let text = "00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000021122fffe334455 0a 40 20 80     eth0
20010db8000000000000000000000007 0a 40 00 80     eth0
";
    assert_eq!(link_local(text), [10]);
}

/// Answers every question that comes; gives where it listens.
fn responder(socket: UdpSocket, answer: Vec<u8>) {
    std::thread::spawn(move || {
        let mut buffer = [0; MESSAGE_MAX];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // What asks is a whole question for this name.
            if buffer[..length] == question("barn.local").unwrap() {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
}

/// A group in name only: a question that is sent to one address.
fn group(to: SocketAddr) -> Group {
    let socket = Async::new(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    Group { socket, address: to, interface: 0 }
}

#[test]
fn whoever_answers_on_any_interface_is_heard() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let liar = UdpSocket::bind("127.0.0.1:0").unwrap();
    let honest = UdpSocket::bind("127.0.0.1:0").unwrap();
    let groups = [&silent, &liar, &honest].map(|socket| group(socket.local_addr().unwrap()));
    responder(liar, answer(&[(&name("mill.local").unwrap(), kind::A, &[192, 0, 2, 9])]));
    responder(honest, answer(&[(&barn(), kind::A, &[192, 0, 2, 7])]));
    let found = smol::block_on(ask("barn.local", &groups));
    assert_eq!(found, [Found { address: [192, 0, 2, 7].into(), scope: 0 }]);
    assert_eq!(found[0].with_port(7).to_string(), "192.0.2.7:7");
    let link_local = Found { address: "fe80::1".parse().unwrap(), scope: 3 };
    assert!(matches!(link_local.with_port(7), SocketAddr::V6(address) if address.scope_id() == 3));
}

// The emulator that runs tests for other processors does not know the
// socket options of multicast.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_responder_in_the_group_is_found_over_multicast() {
    // The port is shared with whatever else answers on this machine.
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None).unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
    let socket: UdpSocket = match rustix::net::bind(&socket, &address) {
        Ok(()) => socket.into(),
        Err(error) => return println!("SKIPPED: port {PORT}: {error}"),
    };
    if let Err(error) = socket.join_multicast_v4(&GROUP_V4, &Ipv4Addr::LOCALHOST) {
        return println!("SKIPPED: no multicast on loopback: {error}");
    }
    responder(socket, answer(&[(&barn(), kind::A, &[127, 0, 0, 1])]));
    let found = smol::block_on(resolve("barn.local", 10000)).unwrap();
    assert_eq!(found, ["127.0.0.1:10000".parse().unwrap()]);
}

#[test]
fn who_hears_nothing_says_why() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(smol::block_on(ask("barn.local", &[group(silent.local_addr().unwrap())])).is_empty());
}

proptest! {
    #[test]
    fn whatever_comes_is_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        addresses(&bytes, "barn.local");
    }

    #[test]
    fn whatever_names_are_made_of_they_end(
        names in proptest::collection::vec(
            proptest::collection::vec(prop_oneof![Just(0xc0u8), 0u8..64, any::<u8>()], 0..40), 0..8,
        ),
    ) {
        let records: Vec<_> = names.iter().map(|name| (name.as_slice(), kind::A, &[192, 0, 2, 7][..])).collect();
        prop_assert!(addresses(&answer(&records), "barn.local").len() <= ADDRESSES_MAX);
    }

    #[test]
    fn an_answer_is_found_among_others(others in proptest::collection::vec("[a-z]{1,20}", 0..8), last: [u8; 4]) {
        let address = IpAddr::from(last);
        prop_assume!(!address.is_unspecified() && !address.is_multicast());
        let others: Vec<_> = others.iter().map(|host| name(&format!("{host}x.local")).unwrap()).collect();
        let mut records: Vec<_> =
            others.iter().map(|name| (name.as_slice(), kind::A, &[192, 0, 2, 1][..])).collect();
        let barn = barn();
        records.push((&barn, kind::A, &last));
        prop_assert_eq!(addresses(&answer(&records), "barn.local"), [address]);
    }
}
