//! What is no frame, or too much of one.

use super::host::{
    self,
    liar::{Cloud, Member, Talk},
};
use super::{key, node, register, run, settled, status};
use async_tungstenite::tungstenite::Message;
use async_tungstenite::tungstenite::protocol::frame::Frame as WsFrame;
use async_tungstenite::tungstenite::protocol::frame::coding::{Data as WsData, OpCode};
use holm::link::frame::*;
use holm::link::{Body, Holding};
use serde_json::json;

/// What ends a connection, and what the log says of it.
async fn frames_that_are_none(member: &Member) -> Vec<(&'static str, Talk)> {
    let mut ended = Vec::new();
    let binary = |bytes: Vec<u8>| Message::Binary(bytes.into());
    let good =
        Frame { seq: 1, body: Some(Body::Renew(Renew::default())), has_body: true, ..Frame::default() }
            .encode();
    let long = Frame::plain(status(key("pods", &"x".repeat(254)), "u", json!({}))).encode();
    let mut nested = vec![0xa1, 0x02, 0x82, 0x07];
    nested.extend(vec![0x81; 10_000]);
    let messages: Vec<(&'static str, Message)> = vec![
        ("not a frame", binary(b"\xff\xfe garbage".to_vec())),
        ("not a frame", binary(Vec::new())),
        ("not a frame", binary(good[..good.len() - 3].to_vec())),
        ("not a frame", binary(nested)),
        // A million holdings announced, none there.
        ("not a frame", binary(vec![0xa1, 0x02, 0x82, 0x03, 0x81, 0xa1, 0x00, 0x9a, 0x00, 0x0f, 0x42, 0x40])),
        ("a name or uid of more than 253 bytes", binary(long)),
        ("bytes follow the frame", binary([&good[..], b"x"].concat())),
        ("not binary", Message::Text("{}".into())),
        ("", binary(vec![0; MAX_FRAME + 1])),
        ("what was never sent", binary(Frame { ack: 1 << 40, ..Frame::default() }.encode())),
        ("have a gap", binary(Frame { seq: 7, ..Frame::plain(Body::Synced) }.encode())),
    ];
    for (reason, message) in messages {
        let mut talk = member.greet().await;
        talk.settle().await;
        talk.message(message).await;
        ended.push((reason, talk));
        let (_, talk) = ended.last_mut().unwrap();
        talk.until_closed().await;
    }
    ended
}

#[test]
fn frames_that_are_none_end_their_own_connection_only() {
    run(async {
        let mut cloud = Cloud::start("hostile-frames").await;
        let (_neighbour, mut honest, theirs) = settled(&cloud, "neighbour").await;
        let liar = cloud.join("liar").await;
        for (reason, talk) in frames_that_are_none(&liar).await {
            assert!(talk.closed, "{reason}");
            assert!(cloud.log().contains(reason), "{reason}\n{}", cloud.log());
            honest.send(status(key("pods", "neighbour-pod"), &theirs, json!({"phase": "Running"}))).await;
            assert!(honest.settle().await, "{reason}");
        }
        // A number again: what was done is not done twice.
        let mut talk = liar.greet().await;
        talk.settle().await;
        let again = Frame { seq: 1, ..Frame::plain(register(node("liar"))) };
        talk.frame(&again).await;
        talk.frame(&again).await;
        talk.until_closed().await;

        // One frame in many websocket fragments is one frame; fragments without an end are not kept.
        let mut talk = liar.greet().await;
        talk.settle().await;
        let next = talk.send(register(node("liar"))).await + 1;
        let bytes =
            Frame { seq: next, body: Some(register(node("liar"))), has_body: true, ..Frame::default() }
                .encode();
        let pieces: Vec<&[u8]> = bytes.chunks(7).collect();
        for (n, piece) in pieces.iter().enumerate() {
            let opcode = OpCode::Data(if n == 0 { WsData::Binary } else { WsData::Continue });
            let fragment = WsFrame::message(piece.to_vec(), opcode, n + 1 == pieces.len());
            talk.message(Message::Frame(fragment)).await;
        }
        while talk.acked < next {
            assert!(talk.next_frame().await.is_some());
        }
        let before = cloud.peak_memory();
        let mut sent = 0;
        while !talk.closed && sent < 8 * MAX_FRAME {
            let opcode = OpCode::Data(if sent == 0 { WsData::Binary } else { WsData::Continue });
            talk.message(Message::Frame(WsFrame::message(vec![0; 64 * 1024], opcode, false))).await;
            sent += 64 * 1024;
        }
        talk.until_closed().await;
        // The message itself, and what a growing buffer leaves behind.
        let grown = cloud.peak_memory() - before;
        assert!(grown < 4 * MAX_FRAME, "{grown}");

        // A flood of signs of life is answered or left, and nothing more.
        let mut talk = liar.greet().await;
        talk.settle().await;
        for _ in 0..20_000 {
            talk.message(Message::Ping(vec![0; 100].into())).await;
        }
        for _ in 0..20_000 {
            talk.plain(Body::Ping).await;
        }
        honest.send(status(key("pods", "neighbour-pod"), &theirs, json!({"phase": "Failed"}))).await;
        assert!(honest.settle().await);
        assert!(cloud.peak_memory() - before < 4 * MAX_FRAME + (8 << 20));
        assert!(cloud.runs());
    });
}

#[test]
fn an_inventory_of_a_million_is_refused_before_it_takes_memory() {
    run(async {
        let cloud = Cloud::start("hostile-inventory").await;
        let liar = cloud.join("liar").await;
        let holding = |n: usize, name: &str| Holding {
            key: WireKey { name: format!("{name}{n}"), ..key("configmaps", "") },
            uid: name.into(),
            hash: [0; 32],
        };
        // Many short ones in parts as they should be, many in one part, and few long ones.
        for (each, name, parts) in [(256, "", 4000), (40_000, "", 30), (256, &*"x".repeat(7_000), 300)] {
            let mut talk = liar.connect().await;
            assert!(talk.greet().await.inventory);
            let before = cloud.peak_memory();
            let mut sent = 0;
            for part in 0..parts {
                let holdings = (0..each).map(|n| holding(part * each + n, name)).collect();
                talk.send(Body::Inventory(Inventory { holdings, last: false })).await;
                sent += each;
                if talk.closed {
                    break;
                }
            }
            talk.until_closed().await;
            let grown = cloud.peak_memory() - before;
            println!(
                "{sent} holdings of {} bytes were sent, memory grew by {} KiB",
                name.len() + 60,
                grown / 1024
            );
            // What a frame in all its forms (ciphertext, message, values) and the largest inventory may take.
            assert!(grown < 16 * MAX_FRAME, "{grown}");
        }
        host::until("the reason", async || cloud.log().contains("longer than any board's").then_some(()))
            .await;
    });
}
