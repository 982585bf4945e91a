//! The life of a node's certificate, over real TLS on loopback: a whole cloud and whole edges as processes,
//! and beside them boards that say what no edge would.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod roles;

use data_encoding::BASE64;
use holm::link::frame::{Gone, WireKey};
use holm::link::{Body, Heard};
use holm::trust::CertificateDer;
use holm::trust::authority::Authority;
use holm::trust::certificate::Facts;
use holm::trust::code::JoinCode;
use holm::trust::identity::Identity;
use roles::{
    Board, Cloud, Scratch, current_key, key_of, start_edge, start_edge_until_registered, start_edge_with,
    until, wait_for_its_end,
};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// So short that it is over as soon as it is looked at twice.
const MOMENT: Duration = Duration::from_secs(1);

#[test]
fn a_node_renews_over_its_session_and_goes_on_with_the_new_key() {
    let scratch = Scratch::new();
    let cloud = Cloud::start(scratch.path("c"), &[]);
    let folder = scratch.path("e");
    // It began an hour ago, so that two thirds of its life have passed.
    let board = Board::member(&folder, &cloud, Duration::from_secs(1800));
    let first = board.slot().key_fingerprint().to_string();
    let edge = start_edge(&folder);
    let second = until("the next key to be promoted", || current_key(&folder).filter(|key| *key != first));
    let node = until("the node to have registered with it", || {
        cloud.node().filter(|node| key_of(node).as_deref() == Some(second.as_str()))
    });
    assert_eq!(node["metadata"]["annotations"].get("holm.dev/key-next"), None);
    // The one before is locked out, the agent goes on after a restart.
    assert!(board.refused().contains("another board"), "{}", board.refused());
    drop(edge);
    assert!(Identity::load(&folder).unwrap().unwrap().next().is_none_or(|slot| slot.certificate().is_none()));
}

#[test]
fn an_expired_node_may_renew_within_the_window_and_nothing_else() {
    let scratch = Scratch::new();
    let cloud = Cloud::start(scratch.path("c"), &["--renew-window", "1d"]);
    let folder = scratch.path("e");
    let board = Board::member(&folder, &cloud, MOMENT);
    wait_for_its_end(board.slot());
    // What it says beside renewing ends the session, and does nothing.
    let end = board.session(async |mut connection, welcome| {
        assert!(welcome.renew_only && !welcome.inventory && !welcome.complete);
        connection.agree(true, welcome.window, Duration::from_secs(15));
        let key = WireKey { resource: "nodes".into(), name: "pi".into(), ..WireKey::default() };
        connection.send(Body::Gone(Gone { key, uid: String::new() }));
        connection.first(Duration::from_secs(20)).await
    });
    assert!(end.unwrap().is_err());
    assert_eq!(cloud.node(), None, "an expired node registers nothing");
    // The whole edge does what is right: it renews, and is there.
    let first = current_key(&folder).unwrap();
    let edge = start_edge(&folder);
    let second = until("the next key to be promoted", || current_key(&folder).filter(|key| *key != first));
    until("the node to be there", || cloud.node().filter(|node| key_of(node) == Some(second.clone())));
    drop(edge);
}

#[test]
fn beyond_the_window_the_remedy_is_named() {
    let scratch = Scratch::new();
    let cloud = Cloud::start(scratch.path("c"), &["--renew-window", "0"]);
    let mut board = Board::member(&scratch.path("e"), &cloud, MOMENT);
    wait_for_its_end(board.slot());
    let reason = board.refused();
    assert!(reason.contains("expired on 2") && reason.contains("holm token create --node pi"), "{reason}");
    assert!(!reason.contains('\n'));
    assert!(board.renew().is_err());
    // The remedy works, under the same name, and with a new key.
    Board::join(&scratch.path("new"), &cloud.code(Some("pi"))).unwrap();
}

#[test]
fn a_lost_answer_is_given_again_and_the_old_key_works_until_the_new_one_has_registered() {
    let scratch = Scratch::new();
    let cloud = Cloud::start(scratch.path("c"), &[]);
    let folder = scratch.path("e");
    let mut board = Board::join(&folder, &cloud.code(None)).unwrap();
    // The Node exists, as it does once a node has been there.
    drop(start_edge_until_registered(&cloud, &folder));
    // The answer is lost, and the power with it: the same key asks again, and is written down once.
    let (lost, _) = board.ask().unwrap();
    let mut board = board.rebooted();
    let (given, only) = board.ask().unwrap();
    let key = |certificate: &CertificateDer<'_>| Facts::read(certificate).unwrap().key;
    assert_eq!((key(&lost), only), (key(&given), false));
    let annotation = |name: &str| cloud.node().unwrap()["metadata"]["annotations"][name].clone();
    assert_eq!(annotation("holm.dev/key-next"), key(&given).to_string());
    // Both connect now, and after the new one has registered, it alone.
    let old = board.rebooted();
    old.session(async |_, _| ()).unwrap();
    board.identity.install(given.clone()).unwrap();
    let edge = start_edge(&folder);
    until("the new key to register", || {
        (annotation("holm.dev/key") == key(&given).to_string()).then_some(())
    });
    drop(edge);
    assert!(old.refused().contains("another board"));
    assert_eq!(current_key(&folder), Some(key(&given).to_string()));
}

#[test]
fn a_revoked_node_is_cut_off_at_once_and_comes_back_only_with_a_code_of_its_own() {
    let scratch = Scratch::new();
    let cloud = Cloud::start(scratch.path("c"), &[]);
    let folder = scratch.path("e");
    let mut board = Board::join(&folder, &cloud.code(None)).unwrap();
    drop(start_edge_until_registered(&cloud, &folder));
    // A live session ends without a word from the node.
    let ended = board.session(async |mut connection, _| {
        let said = cloud.revoke(&["pi"]);
        assert!(
            said.contains("node pi is revoked") && said.contains("holm token create --node pi"),
            "{said}"
        );
        loop {
            for heard in connection.next().await {
                if let Heard::Closed(reason) = heard {
                    return reason;
                }
            }
        }
    });
    ended.unwrap();
    let reason = board.refused();
    assert!(reason.contains("node pi was revoked (stolen from the barn)"), "{reason}");
    assert!(board.renew().unwrap_err().contains("revoked"));
    let condition = until("the Node to show it", || {
        let node = cloud.node()?;
        let conditions = node["status"]["conditions"].as_array()?.clone();
        conditions.into_iter().find(|condition| condition["type"] == "Revoked")
    });
    assert_eq!(condition["status"], "True");
    let events = cloud.get("/api/v1/namespaces/default/events").unwrap();
    assert!(events["items"].as_array().unwrap().iter().any(|event| event["reason"] == "NodeRevoked"));

    // A restart of the cloud forgets nothing.
    let mut cloud = cloud;
    cloud.restart(&[]);
    assert!(board.refused().contains("was revoked"));
    // A code for anybody does not let it in, one for the node does.
    let any = Board::join(&scratch.path("any"), &cloud.code(None));
    assert!(any.is_err_and(|reason| reason.contains("revoked")));
    let mut back = Board::join(&scratch.path("back"), &cloud.code(Some("pi"))).unwrap();
    assert!(back.session(async |_, welcome| !welcome.renew_only).unwrap());
    assert!(board.refused().contains("was revoked"));
    // And it renews, twice, as any other.
    for _ in 0..2 {
        assert_eq!(back.renew(), Ok(false));
        back.identity.promote().unwrap();
        back.session(async |_, _| ()).unwrap();
    }
    // Revoked again, it is out again.
    cloud.revoke(&["pi"]);
    until("the second revocation", || back.refused().contains("was revoked").then_some(()));
}

#[test]
fn a_key_and_a_certificate_can_be_revoked_alone() {
    let scratch = Scratch::new();
    let cloud = Cloud::start(scratch.path("c"), &[]);
    for (name, by_key) in [("a", true), ("b", false)] {
        let mut board = Board::join(&scratch.path(name), &cloud.code(Some("pi"))).unwrap();
        board.session(async |_, _| ()).unwrap();
        let facts: Facts = board.slot().facts().unwrap().clone();
        match by_key {
            true => cloud.revoke(&["--key", &facts.key.to_string()]),
            false => cloud.revoke(&["--serial", &facts.serial]),
        };
        let reason = until("the revocation", || board.session(async |_, _| ()).err());
        assert!(reason.contains("was revoked"), "{reason}");
        assert!(board.renew().is_err());
    }
    // The name is as good as ever.
    let board = Board::join(&scratch.path("c2"), &cloud.code(Some("pi"))).unwrap();
    board.session(async |_, _| ()).unwrap();
}

/// Everything that must stay with its owner: private keys as files and logs would show them, and join secrets.
fn secrets(folders: &[&Path], codes: &[&JoinCode], authority: &Authority) -> Vec<String> {
    let mut pems = vec![authority.key_pem()];
    for file in folders.iter().flat_map(|folder| files(folder)) {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        pems.push(text.clone());
        let data = text.lines().filter_map(|line| line.trim().strip_prefix("client-key-data: "));
        pems.extend(data.map(|data| String::from_utf8(BASE64.decode(data.as_bytes()).unwrap()).unwrap()));
    }
    let mut secrets = Vec::new();
    for pem in pems.iter().filter(|pem| pem.contains("PRIVATE KEY")) {
        let body = pem.split("PRIVATE KEY-----").nth(1).unwrap();
        secrets.extend(body.lines().filter(|line| line.len() >= 40).map(str::to_owned));
        secrets.push(BASE64.encode(body.trim().as_bytes()).chars().take(40).collect());
    }
    for code in codes {
        let bytes = code.secret.as_bytes();
        secrets.push(data_encoding::HEXLOWER.encode(bytes));
        secrets.push(data_encoding::BASE64_NOPAD.encode(bytes));
        secrets.push(data_encoding::BASE64URL_NOPAD.encode(bytes));
        secrets.push(code.to_text().unwrap());
        secrets.push(format!("{bytes:?}"));
    }
    secrets
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.symlink_metadata().unwrap().is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

#[test]
fn a_revoked_board_joins_again_by_a_new_code_alone_and_no_secret_is_readable_or_logged() {
    let scratch = Scratch::new();
    let cloud = Cloud::start(scratch.path("c"), &[]);
    let folder = scratch.path("e");
    let first =
        Board::member(&folder, &cloud, Duration::from_secs(1800)).slot().key_fingerprint().to_string();
    let edge = start_edge(&folder);
    let renewed = until("the next key to be promoted", || current_key(&folder).filter(|key| *key != first));
    until("the node to be there", || cloud.node().filter(|node| key_of(node) == Some(renewed.clone())));
    cloud.revoke(&["pi"]);
    let log = |name: &str| std::fs::read_to_string(scratch.path(name)).unwrap();
    until("the edge to be told", || log("e.log").contains("was revoked").then_some(()));
    drop(edge);

    let code = cloud.code(Some("pi"));
    let edge = start_edge_with(&folder, &code.to_text().unwrap());
    let again = until("the board to have joined again", || {
        current_key(&folder).filter(|key| *key != renewed && *key != first)
    });
    until("the node to be back", || cloud.node().filter(|node| key_of(node) == Some(again.clone())));
    until("the Node to forget", || {
        let conditions = cloud.node()?["status"]["conditions"].as_array()?.clone();
        (!conditions.iter().any(|condition| condition["type"] == "Revoked")).then_some(())
    });
    drop(edge);
    // The unit file still gives the code: it is not tried again.
    let edge = start_edge_with(&folder, &code.to_text().unwrap());
    until("the code to be passed over", || log("e.log").contains("the join code is not used").then_some(()));

    let folders = [cloud.folder.as_path(), folder.as_path()];
    for path in folders.iter().flat_map(|folder| files(folder)) {
        let mode = path.symlink_metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
    let secrets = secrets(&folders, &[&code], &cloud.authority());
    // The authority's, the hub's, the administrator's, the board's: two whole lines or more of each.
    assert!(secrets.len() >= 4 * 2 + 5, "{}", secrets.len());
    let logs = [log("c.log"), log("e.log")];
    assert!(logs.iter().all(|log| log.contains("DEBUG") || log.contains("TRACE")));
    for secret in &secrets {
        assert!(logs.iter().all(|log| !log.contains(secret.as_str())), "logged: {secret}");
    }
    drop(edge);
}
