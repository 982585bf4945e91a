//! Two connections over a real websocket on loopback.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_tungstenite::WebSocketStream;
use futures_lite::future::{poll_once, zip};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use smol::Async;

use super::*;
use crate::link::calls::CallError;
use crate::link::channels::{OpenError, Stream};
use crate::link::frame::{Data, Put, features};
use crate::link::session::{KEEP_ALIVE, WINDOW};
use crate::link::socket::{BoxIo, config};
use crate::link::streams::{CHUNK, CREDIT};

async fn links(tasks: &Tasks) -> (Link, Link) {
    let (edge, cloud) = sockets().await;
    (Link::new(edge, tasks.executor()), Link::new(cloud, tasks.executor()))
}

async fn sockets() -> (WebSocketStream<BoxIo>, WebSocketStream<BoxIo>) {
    let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
    let address = listener.get_ref().local_addr().unwrap();
    let accept = async {
        let io: BoxIo = Box::new(listener.accept().await.unwrap().0);
        async_tungstenite::accept_async_with_config(io, Some(config())).await.unwrap()
    };
    let connect = async {
        let io: BoxIo = Box::new(Async::<std::net::TcpStream>::connect(address).await.unwrap());
        let uri = format!("ws://{address}/");
        async_tungstenite::client_async_with_config(uri, io, Some(config())).await.unwrap().0
    };
    let (cloud, edge) = zip(accept, connect).await;
    (edge, cloud)
}

/// An edge and a cloud of this release.
async fn pair(tasks: &Tasks) -> (Connection, Connection) {
    let (edge, cloud) = links(tasks).await;
    let edge = Connection::new(edge, tasks.clone(), true, WINDOW, KEEP_ALIVE);
    let cloud = Connection::new(cloud, tasks.clone(), false, WINDOW, KEEP_ALIVE);
    edge.set_peer_features(&features());
    cloud.set_peer_features(&features());
    (edge, cloud)
}

fn run<T>(test: impl AsyncFnOnce(&Tasks) -> T) -> T {
    let tasks = Tasks::default();
    smol::block_on(tasks.executor().clone().run(test(&tasks)))
}

/// Takes what comes; gives why the connection ended.
async fn idle(mut connection: Connection) -> String {
    loop {
        for heard in connection.next().await {
            match heard {
                Heard::Closed(reason) => return reason,
                Heard::Body(seq, _) => connection.done(seq),
                Heard::Acked(_) => {}
            }
        }
    }
}

/// Writes so many bytes of a pattern and reads as many from the other end.
async fn pump(stream: Stream, total: usize) {
    // A prime, so that no lost or doubled frame goes unnoticed.
    let pattern: Arc<Vec<u8>> = {
        let mut random = fastrand::Rng::with_seed(7);
        Arc::new((0..65_521).map(|_| random.u8(..)).collect())
    };
    let (mut reader, mut writer) = futures_lite::io::split(stream);
    let write = async {
        let mut left = total;
        while left > 0 {
            let part = &pattern[..left.min(pattern.len())];
            writer.write_all(part).await.unwrap();
            left -= part.len();
        }
        writer.close().await.unwrap();
    };
    let read = async {
        let mut buffer = vec![0; pattern.len()];
        let mut left = total;
        while left > 0 {
            let count = left.min(pattern.len());
            reader.read_exact(&mut buffer[..count]).await.unwrap();
            assert_eq!(buffer[..count], pattern[..count]);
            left -= count;
        }
        assert_eq!(reader.read(&mut buffer).await.unwrap(), 0, "there is more");
    };
    zip(write, read).await;
}

#[test]
fn puts_wait_behind_no_more_than_the_credit_of_the_streams() {
    // Less where the tests run on an emulated processor.
    const STREAM: usize = if cfg!(target_arch = "x86_64") { 25_000_000 } else { 2_000_000 };
    run(async |tasks| {
        let (mut edge, mut cloud) = pair(tasks).await;
        let (to_edge, at_edge) = async_channel::bounded(4);
        let (to_cloud, at_cloud) = async_channel::bounded(4);
        let mut services = Services::default();
        services.streams("pump", to_edge);
        edge.set_services(services);
        let mut services = Services::default();
        services.streams("pump", to_cloud);
        cloud.set_services(services);
        let (edge_channels, cloud_channels) = (edge.channels(), cloud.channels());
        let is_over = Arc::new(AtomicBool::new(false));
        let pumps = async {
            let from_edge = edge_channels.open("pump", Vec::new()).unwrap();
            let from_cloud = cloud_channels.open("pump", b"header".to_vec()).unwrap();
            let in_edge = async {
                let incoming = at_edge.recv().await.unwrap();
                assert_eq!(incoming.header, b"header");
                pump(incoming.stream, STREAM).await;
            };
            let in_cloud = async { pump(at_cloud.recv().await.unwrap().stream, STREAM).await };
            zip(zip(pump(from_edge, STREAM), pump(from_cloud, STREAM)), zip(in_edge, in_cloud)).await;
            is_over.store(true, Ordering::Relaxed);
        };
        // One order after the other: what had left before it, and had arrived.
        let mut sent: Option<(u64, u64)> = None;
        let mut measured: Vec<(u64, u64, u64)> = Vec::new();
        let mut in_flight_most = 0;
        let orders = async {
            while !is_over.load(Ordering::Relaxed) {
                if sent.is_none() && cloud.has_room() {
                    let before = (cloud_channels.traffic().0, edge_channels.traffic().1);
                    in_flight_most = in_flight_most.max(before.0 - before.1);
                    cloud.send(Body::Put(Put { object: vec![0; 1000], ..Put::default() }));
                    sent = Some(before);
                }
                let next = async {
                    let end = future_or(edge.next(), cloud.next()).await;
                    Some(end)
                };
                let heard = next.or(async {
                    Timer::after(Duration::from_millis(20)).await;
                    None
                });
                for (is_edge, heard) in
                    heard.await.into_iter().flat_map(|(e, all)| all.into_iter().map(move |h| (e, h)))
                {
                    match heard {
                        Heard::Body(seq, Body::Put(_)) if is_edge => {
                            let (left, arrived) = sent.unwrap();
                            measured.push((left, arrived, edge_channels.traffic().1));
                            edge.done(seq);
                        }
                        Heard::Acked(_) if !is_edge => sent = None,
                        other => panic!("{other:?}"),
                    }
                }
            }
        };
        zip(pumps, orders).await;
        for (left, arrived, then) in &measured {
            assert!(then <= left, "bulk that left later went ahead: {then} {left}");
            assert!(then - arrived <= 2 * u64::from(CREDIT), "{then} {arrived}");
        }
        assert!(in_flight_most > CHUNK as u64, "the streams never filled the link: {in_flight_most}");
        assert!(measured.len() > 20, "only {} orders", measured.len());
        let ahead = measured.iter().map(|(_, arrived, then)| then - arrived).max().unwrap();
        println!(
            "{} orders beside {} and {} bytes; at most {ahead} bytes of streams were ahead of one",
            measured.len(),
            cloud_channels.traffic().0,
            edge_channels.traffic().0
        );
        assert_eq!(
            (cloud_channels.traffic().0, edge_channels.traffic().0),
            (2 * STREAM as u64, 2 * STREAM as u64)
        );
    });
}

/// Whichever has something first, and whether it was the edge.
async fn future_or(
    edge: impl Future<Output = Vec<Heard>>,
    cloud: impl Future<Output = Vec<Heard>>,
) -> (bool, Vec<Heard>) {
    // In turns: neither end may starve the other.
    futures_lite::future::race(async { (true, edge.await) }, async { (false, cloud.await) }).await
}

#[test]
fn at_the_writer_everything_overtakes_bulk() {
    run(async |tasks| {
        let (mut edge, cloud) = links(tasks).await;
        // The writer has not run yet: one of bulk waits, and no more fits.
        cloud.send_bulk(&Frame::plain(Body::Data(Data { stream: 2, bytes: vec![0; CHUNK] })));
        assert!(!cloud.is_ready_for_bulk() && cloud.is_ready());
        cloud.send(&Frame::plain(Body::Synced));
        cloud.send(&Frame::plain(Body::Ping));
        let mut bodies = Vec::new();
        while bodies.len() < 3 {
            if let Wire::Frame(frame) = edge.next().await {
                bodies.push(frame.body.unwrap());
            }
        }
        assert!(matches!(&bodies[..], [Body::Synced, Body::Ping, Body::Data(_)]), "{bodies:?}");
    });
}

#[test]
fn a_part_of_a_frame_is_a_sign_of_life_and_a_whole_one_is_no_part() {
    run(async |tasks| {
        let (edge, mut cloud) = sockets().await;
        let mut edge = Link::new(edge, tasks.executor());
        // A binary message (RFC 6455 section 5.2) in two parts.
        let frame = Frame::plain(Body::Synced).encode();
        cloud.get_mut().write_all(&[0x82, frame.len() as u8]).await.unwrap();
        cloud.get_mut().write_all(&frame[..3]).await.unwrap();
        while !edge.has_read() {
            let _ = within(Duration::from_millis(5), edge.next()).await;
        }
        assert!(!edge.has_read(), "said once");
        cloud.get_mut().write_all(&frame[3..]).await.unwrap();
        assert!(matches!(edge.next().await, Wire::Frame(_)));
        assert!(!edge.has_read());
    });
}

#[test]
fn a_service_that_nobody_registered_is_refused_by_name() {
    run(async |tasks| {
        let (edge, cloud) = pair(tasks).await;
        let channels = cloud.channels();
        let mut stream = channels.open("logs", Vec::new()).unwrap();
        let work = async {
            let error = stream.read(&mut [0; 10]).await.unwrap_err();
            assert_eq!(error.to_string(), "no such service: logs");
            assert!(stream.write(&[1]).await.is_err());
            let answer = channels.ask("version", Vec::new(), KEEP_ALIVE).await;
            assert_eq!(answer, Err(CallError::Refused("no such service: version".into())));
        };
        let ends = async {
            zip(idle(edge), idle(cloud)).await;
        };
        work.or(ends).await;
    });
}

#[test]
fn a_stream_that_is_dropped_or_reset_ends_at_the_other_end() {
    run(async |tasks| {
        let (edge, cloud) = pair(tasks).await;
        let (to_edge, at_edge) = async_channel::bounded(4);
        let mut services = Services::default();
        services.streams("logs", to_edge);
        edge.set_services(services);
        let channels = cloud.channels();
        let work = async {
            for reset in [false, true] {
                let mut stream = channels.open("logs", Vec::new()).unwrap();
                stream.flush().await.unwrap();
                let mut incoming = at_edge.recv().await.unwrap().stream;
                match reset {
                    true => stream.reset("enough"),
                    false => drop(stream),
                }
                let error = incoming.read(&mut [0; 10]).await.unwrap_err();
                assert_eq!(error.to_string(), if reset { "enough" } else { "it was given up" });
            }
            // A full queue is told, and does not block.
            let mut streams: Vec<Stream> =
                (0..5).map(|_| channels.open("logs", Vec::new()).unwrap()).collect();
            let error = streams[4].read(&mut [0; 10]).await.unwrap_err();
            assert_eq!(error.to_string(), "the service is busy: logs");
        };
        let ends = async {
            zip(idle(edge), idle(cloud)).await;
        };
        work.or(ends).await;
    });
}

#[test]
fn calls_are_answered_or_late_or_refused() {
    run(async |tasks| {
        let (edge, cloud) = pair(tasks).await;
        let (questions, asked) = async_channel::bounded(4);
        let mut services = Services::default();
        services.calls("double", questions);
        edge.set_services(services);
        let channels = cloud.channels();
        let work = async {
            let answer = async {
                let question = asked.recv().await.unwrap();
                let answer = question.question.iter().map(|byte| byte * 2).collect();
                question.answer(Ok(answer));
            };
            let (answered, ()) = zip(channels.ask("double", vec![1, 2], KEEP_ALIVE), answer).await;
            assert_eq!(answered, Ok(vec![2, 4]));
            // Nobody takes it: the deadline passes.
            let late = channels.ask("double", vec![1], Duration::from_millis(30)).await;
            assert_eq!(late, Err(CallError::Late));
            drop(asked.recv().await.unwrap());
            // Dropped without an answer.
            let dropped = async { drop(asked.recv().await.unwrap()) };
            let (answered, ()) = zip(channels.ask("double", vec![1], KEEP_ALIVE), dropped).await;
            assert_eq!(answered, Err(CallError::Refused("the service gave no answer".into())));
            // Given up by the asker.
            let ask = channels.ask("double", vec![9], KEEP_ALIVE);
            let mut ask = Box::pin(ask);
            assert_eq!(poll_once(&mut ask).await, None);
            drop(ask);
        };
        let ends = async {
            zip(idle(edge), idle(cloud)).await;
        };
        work.or(ends).await;
        // The connections are gone now.
        assert!(matches!(channels.ask("double", vec![1], KEEP_ALIVE).await, Err(CallError::Closed(_))));
        assert!(matches!(channels.open("double", Vec::new()), Err(OpenError::Closed(_))));
    });
}

#[test]
fn an_older_peer_is_sent_neither_streams_nor_calls() {
    run(async |tasks| {
        let (_edge, cloud) = pair(tasks).await;
        cloud.set_peer_features(&["lz4".into()]);
        let channels = cloud.channels();
        assert_eq!(channels.open("logs", Vec::new()).err(), Some(OpenError::NotSpoken));
        assert_eq!(channels.ask("version", Vec::new(), KEEP_ALIVE).await, Err(CallError::NotSpoken));
    });
}

#[test]
fn a_peer_that_breaks_the_rules_is_cut_off_with_the_reason() {
    run(async |tasks| {
        let (mut edge, cloud) = pair(tasks).await;
        edge.send_plain(Body::Data(Data { stream: 2, bytes: vec![1] }));
        let reason = idle(cloud).or(idle(edge)).await;
        assert_eq!(reason, "it spoke of a stream that nobody opened");
    });
}
