//! What is tried with join codes.

use super::host::liar::{Cloud, Member, ask};
use super::{node, register, run};
use holm::trust::code::{JoinCode, JoinSecret, SecretId};
use holm::trust::identity::{Identity, Membership};
use holm::trust::record::SecretRecord;
use holm::trust::unix;

#[test]
fn a_join_code_is_good_for_one_board_and_one_name() {
    run(async {
        let cloud = Cloud::start("hostile-join").await;
        let foreign = Cloud::start("hostile-join-foreign").await;
        let folder = |name: &str| cloud.folder(&format!("board-{name}"));
        let refused = async |code: &JoinCode, name: &str, board: &str| {
            Member::join(code, name, &folder(board)).await.map(|_| ()).unwrap_err().reason
        };

        // Used.
        let code = cloud.token(&[]).await;
        Member::join(&code, "first", &folder("1")).await.unwrap();
        for (name, board) in [("first", "2"), ("second", "2"), ("second", "1b")] {
            let reason = refused(&code, name, board).await;
            assert!(reason.contains("was used before, by node first"), "{reason}");
        }
        // A name that is taken.
        let code = cloud.token(&[]).await;
        let mut taken = Member::join(&code, "first", &folder("3")).await;
        if taken.is_ok() {
            // Nobody has registered under the name yet.
            let first = cloud.join("taken").await;
            let mut talk = first.greet().await;
            talk.send(register(node("taken"))).await;
            assert!(talk.settle().await);
            taken = Member::join(&cloud.token(&[]).await, "taken", &folder("4")).await;
        }
        let reason = taken.map(|_| ()).unwrap_err().reason;
        assert!(reason.contains("there is a node"), "{reason}");
        // Bound to another.
        let code = cloud.token(&["--node", "island"]).await;
        let reason = refused(&code, "mainland", "5").await;
        assert!(reason.contains("is for node island, not for mainland"), "{reason}");
        // A wrong secret.
        let code = cloud.token(&[]).await;
        let wrong = JoinCode { secret: JoinSecret::from_bytes([7; 32]), ..code.clone() };
        let reason = refused(&wrong, "wrong", "6").await;
        assert!(reason.contains("secret is wrong"), "{reason}");
        // Expired.
        let (id, secret) = (SecretId::random().unwrap(), JoinSecret::random().unwrap());
        let record =
            SecretRecord { hash: secret.hash(), expires: unix(1_700_000_000), node: None, used: None };
        cloud.api("POST", "/api/v1/namespaces/holm-system/secrets", Some(record.to_secret(&id))).await;
        let reason = refused(&JoinCode { id, secret, ..code.clone() }, "late", "7").await;
        assert!(reason.contains("has expired"), "{reason}");
        // Another cluster's, shown to this one.
        let theirs = foreign.token(&[]).await;
        let mixed = JoinCode { id: theirs.id, secret: theirs.secret, ..code.clone() };
        let reason = refused(&mixed, "stranger", "8").await;
        assert!(reason.contains("not one of this cluster's"), "{reason}");

        // Names and requests that cannot be. None of them uses the code up.
        let mut board = Identity::join(
            &folder("9"),
            Membership {
                cluster: code.cluster.clone(),
                node: "good".parse().unwrap(),
                endpoints: code.endpoints.clone(),
                pins: code.pins.clone(),
            },
            true,
        )
        .unwrap();
        let request = board.request().unwrap();
        let long = "x".repeat(254);
        for name in ["", "A", "a/b", "../x", "a\0b", "ä", &long, "a b", "-a", "a..b", "system:node:x", "a\nb"]
        {
            let reason = ask(&code, name, request.clone()).await.unwrap_err().reason;
            assert!(!reason.contains('\n') && !reason.contains('\0'), "{reason:?}");
        }
        let mut forged = request.clone();
        *forged.last_mut().unwrap() ^= 1;
        for request in [vec![], vec![0x30; 5000], request[..100].to_vec(), forged] {
            let reason = ask(&code, "good", request).await.unwrap_err().reason;
            assert!(reason.contains("request"), "{reason}");
        }
        Member::join(&code, "good", &folder("10")).await.unwrap();
        let nodes = cloud.api("GET", "/api/v1/nodes", None).await;
        let nodes = nodes["items"].as_array().unwrap();
        assert!(nodes.iter().all(|node| node["metadata"]["name"] == "taken"), "{nodes:?}");
    });
}
