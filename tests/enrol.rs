//! How boards join: one code has one winner however many replicas there are, a code's endpoints are tried in
//! turn, and whoever knocks in vain keeps nobody else out.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod clouds;

use clouds::{Asker, Scratch, Site, node, run, stranger, until};
use holm::edge::join::{self, JoinError};
use holm::link::Body;
use holm::link::frame::Join;
use holm::object::Key;
use holm::trust::CertificateDer;
use holm::trust::certificate::{Facts, peer_node};
use holm::trust::clock::{Boot, Clock};
use holm::trust::record::{NAMESPACE, secret_name};
use std::collections::BTreeSet;
use std::time::Duration;

#[test]
fn one_code_at_two_replicas_has_one_winner() {
    run(async |tasks| {
        let scratch = Scratch::new();
        let site = Site::new(&tasks).await;
        let replicas = [site.replica().await, site.replica().await];
        let code = site.code(&replicas[0].published()).await;
        let boards: Vec<Asker> = (0..16)
            .map(|n| Asker::new(scratch.path(&format!("{n}")), &code, &format!("board-{n}")))
            .collect();
        // Each asks both at once, as one would whose first answer is late.
        let asks = boards.iter().enumerate().flat_map(|(n, board)| {
            let (tasks, replicas) = (&tasks, &replicas);
            replicas.iter().map(move |replica| async move { (n, board.ask(tasks, &replica.endpoint).await) })
        });
        let answers = all(asks.collect()).await;
        let mut certificates = BTreeSet::new();
        let mut winners = BTreeSet::new();
        for (n, answer) in &answers {
            match answer {
                Ok(Body::Joined(joined)) => {
                    certificates.insert(joined.certificate.clone());
                    winners.insert(*n);
                }
                Ok(Body::Refused(refused)) => {
                    assert!(
                        refused.permanent && refused.reason.contains("used before"),
                        "{}",
                        refused.reason
                    );
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((certificates.len(), winners.len(), answers.len()), (1, 1, 32));
        let winner = &boards[*winners.first().unwrap()];
        // The answer was lost: the same one is given again, by either.
        for replica in &replicas {
            match winner.ask(&tasks, &replica.endpoint).await {
                Ok(Body::Joined(joined)) => assert!(certificates.contains(&joined.certificate)),
                other => panic!("{other:?}"),
            }
        }
        let key = Key::core("secrets", NAMESPACE, &secret_name(&code.id)).unwrap();
        let secret = site.cluster.get(&key).await.unwrap().unwrap();
        assert!(!secret.value.to_string().contains(&format!("{:?}", code.secret.as_bytes())));
        let certificate = CertificateDer::from(certificates.pop_first().unwrap());
        assert_eq!(peer_node(&[certificate]).unwrap().node, winner.identity.membership().node);
    });
}

/// Polls all together.
async fn all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    futures_lite::future::poll_fn(|context| {
        for (future, output) in &mut futures {
            if output.is_none()
                && let std::task::Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *output = Some(ready);
            }
        }
        match futures.iter().all(|(_, output)| output.is_some()) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    futures.into_iter().filter_map(|(_, output)| output).collect()
}

#[test]
fn endpoints_are_tried_in_turn_and_each_is_named_if_none_is_the_cloud() {
    run(async |tasks| {
        let scratch = Scratch::new();
        let ours = Site::new(&tasks).await;
        let theirs = Site::new(&tasks).await;
        let (right, stranger, other) = (ours.replica().await, theirs.replica().await, theirs.replica().await);
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let nobody = nobody.to_string().parse().unwrap();
        let clock = Clock::new(None, Boot::default());

        let mut code = ours.code(&right.published()).await;
        code.endpoints = vec![stranger.endpoint.clone(), other.endpoint.clone()];
        let text = code.to_text().unwrap();
        let refused = join::join(&scratch.path("b"), &text, &node("b"), &clock, &tasks).await.unwrap_err();
        assert!(matches!(refused, JoinError::NotTheCloud(_)));
        let line = refused.to_string();
        for endpoint in &code.endpoints {
            assert!(line.contains(&format!("{endpoint} (the server is not this cluster's cloud")), "{line}");
        }
        assert!(!line.contains('\n'));

        code.endpoints = vec![nobody, stranger.endpoint.clone(), right.endpoint.clone()];
        let text = code.to_text().unwrap();
        let joined = join::join(&scratch.path("a"), &text, &node("a"), &clock, &tasks).await.unwrap();
        // What the cloud says comes first, and the code's own endpoints stay.
        assert_eq!(joined.membership().endpoints, [right.endpoint]);
        assert_eq!(joined.endpoints().len(), 3);
    });
}

#[test]
fn the_subject_is_the_clouds_whatever_the_request_asks_for() {
    use rcgen::{CertificateParams, DnType, KeyPair};
    run(async |tasks| {
        let scratch = Scratch::new();
        let site = Site::new(&tasks).await;
        let replica = site.replica().await;
        let code = site.code(&replica.published()).await;
        let mut board = Asker::new(scratch.path("a"), &code, "honest");
        let mut forged = CertificateParams::new(vec!["kubernetes.default".into()]).unwrap();
        forged.distinguished_name.push(DnType::CommonName, "system:node:other");
        forged.distinguished_name.push(DnType::OrganizationName, "system:masters");
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        board.ask.request = forged.serialize_request(&key).unwrap().der().to_vec();
        let Ok(Body::Joined(joined)) = board.ask(&tasks, &replica.endpoint).await else {
            panic!("no answer")
        };
        let facts = Facts::read(&CertificateDer::from(joined.certificate)).unwrap();
        assert_eq!(facts.common_name.as_deref(), Some("system:node:honest"));
        assert_eq!(facts.organizations, ["system:nodes"]);
        assert!(!facts.is_ca);
    });
}

#[test]
fn half_open_connections_keep_nobody_out() {
    run(async |tasks| {
        let scratch = Scratch::new();
        let site = Site::new(&tasks).await;
        let replica = site.replica().await;
        let code = site.code(&replica.published()).await;
        let address: std::net::SocketAddr = replica.endpoint.to_string().parse().unwrap();
        let mut open = Vec::new();
        for _ in 0..1500 {
            open.push(smol::Async::<std::net::TcpStream>::connect(address).await.unwrap());
        }
        assert!(replica.door.unfinished() <= 256, "{}", replica.door.unfinished());
        // From the same address as all of these.
        let board = Asker::new(scratch.path("a"), &code, "a");
        assert!(matches!(board.ask(&tasks, &replica.endpoint).await, Ok(Body::Joined(_))));
        drop(open);
        until("the places to be free again", async || replica.door.unfinished() == 0).await;
    });
}

#[test]
fn strangers_are_counted_and_say_little() {
    run(async |tasks| {
        let scratch = Scratch::new();
        let site = Site::new(&tasks).await;
        let replica = site.replica().await;
        let code = site.code(&replica.published()).await;
        let mut board = Asker::new(scratch.path("a"), &code, "a");

        // A message that no Join is as long as.
        let long = Join { request: vec![0; 16 * 1024], ..board.ask.clone() };
        let mut connection = stranger(&tasks, &replica.endpoint, &board.identity).await.unwrap();
        connection.send_plain(Body::Join(long));
        let answer = connection.first(Duration::from_secs(20)).await;
        assert!(answer.is_err(), "{answer:?}");

        // Guessing is refused before anything is looked up, and does not use the code up.
        let secret = std::mem::take(&mut board.ask.secret);
        let mut refused = None;
        for _ in 0..200 {
            match board.ask(&tasks, &replica.endpoint).await {
                Ok(Body::Refused(answer)) if answer.permanent => {}
                Ok(Body::Refused(answer)) => refused = Some(answer.reason),
                Err(why) => refused = Some(why),
                other => panic!("{other:?}"),
            }
            if refused.is_some() {
                break;
            }
        }
        let refused = refused.unwrap();
        assert!(refused.contains("too many"), "{refused}");
        board.ask.secret = secret;
        let tasks = &tasks;
        until("the address to be heard again", async || {
            matches!(board.ask(tasks, &replica.endpoint).await, Ok(Body::Joined(_)))
        })
        .await;
    });
}
