use super::*;
use crate::trust::clock::{BUILD_TIME, Floor};
use crate::trust::names::ClusterUid;
use crate::trust::rotation::{Generation, Rotation};
use crate::trust::unix;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use futures_rustls::client::TlsStream;
use futures_rustls::{TlsAcceptor, TlsConnector};
use smol::Async;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

const DAY: u64 = 24 * 3600;

fn at(days: u64) -> IssueTime {
    IssueTime::check(unix(BUILD_TIME.as_secs() + days * DAY), Floor::INITIAL).unwrap()
}

fn wrong() -> Result<IssueTime, ClockError> {
    IssueTime::check(unix(0), Floor::INITIAL)
}

/// A data directory that is removed at the end of the test, and who issues.
struct Site {
    data_dir: PathBuf,
    authority: Arc<Authority>,
}

impl Site {
    fn new() -> Site {
        let name = data_encoding::HEXLOWER.encode(&crate::trust::random::<8>().unwrap());
        let data_dir = std::env::temp_dir().join(format!("holm-certificates-{name}"));
        std::fs::create_dir(&data_dir).unwrap();
        let authority = Authority::create(&ClusterUid::random().unwrap(), at(0)).unwrap();
        Site { data_dir, authority: Arc::new(authority) }
    }

    fn open(
        &self,
        name: &'static str,
        when: Result<IssueTime, ClockError>,
    ) -> Result<Certificates, CertificatesError> {
        let subject = Subject {
            authorities: Arc::new(Set {
                rotation: Rotation::steady(Generation::FIRST),
                issuing: self.authority.clone(),
                other: None,
            }),
            names: vec![name.try_into().unwrap()],
            api: "127.0.0.1:6443".parse().unwrap(),
            data_dir: self.data_dir.clone(),
        };
        Certificates::open(subject, when)
    }

    fn inode(&self, file: &str) -> u64 {
        std::fs::metadata(self.data_dir.join(file)).unwrap().ino()
    }

    async fn connect(
        &self,
        floor: u64,
        address: std::net::SocketAddr,
    ) -> std::io::Result<TlsStream<Async<TcpStream>>> {
        let (uid, pins) = (self.authority.cluster_uid(), [self.authority.fingerprint()]);
        let config = tls::edge_client(uid, &pins, Floor::at(at(floor).time()), None).unwrap();
        let stream = Async::<TcpStream>::connect(address).await?;
        TlsConnector::from(config).connect(uid.server_name(), stream).await
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.data_dir);
    }
}

fn facts(certificates: &Certificates) -> Facts {
    certificates.served().facts.clone()
}

async fn echoes(stream: &mut TlsStream<Async<TcpStream>>) -> bool {
    let mut answer = [0; 4];
    stream.write_all(b"ping").await.is_ok()
        && stream.read_exact(&mut answer).await.is_ok()
        && answer == *b"ping"
}

#[test]
fn new_connections_get_the_renewed_certificate_and_old_ones_go_on() {
    let site = Site::new();
    let certificates = site.open("a", Ok(at(0))).unwrap();
    let executor = Arc::new(smol::Executor::new());
    let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
    let address = listener.get_ref().local_addr().unwrap();
    let (hub, inner) = (certificates.hub(), executor.clone());
    executor
        .spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = TlsAcceptor::from(hub.now());
                inner
                    .spawn(async move {
                        // One that is not trusted ends here.
                        let Ok(mut stream) = acceptor.accept(stream).await else { return };
                        let mut bytes = [0; 4];
                        while stream.read_exact(&mut bytes).await.is_ok() {
                            stream.write_all(&bytes).await.unwrap();
                        }
                    })
                    .detach();
            }
        })
        .detach();
    smol::block_on(executor.run(async {
        let shown = |stream: &TlsStream<Async<TcpStream>>| {
            stream.get_ref().1.peer_certificates().unwrap().first().unwrap().clone().into_owned()
        };
        let mut old = site.connect(0, address).await.unwrap();
        assert!(echoes(&mut old).await);
        // Not due yet: nothing changes.
        certificates.look(at(15)).unwrap();
        assert_eq!(shown(&site.connect(0, address).await.unwrap()), shown(&old));
        certificates.look(at(20)).unwrap();
        let new = site.connect(20, address).await.unwrap();
        assert_ne!(shown(&new), shown(&old));
        assert!(echoes(&mut old).await, "a connection goes on over the renewal");
        // The first would have been over by now.
        assert!(site.connect(40, address).await.is_ok());
        certificates.look(at(40)).unwrap();
        assert!(site.connect(60, address).await.is_ok() && echoes(&mut old).await);
    }));
}

#[test]
fn a_cloud_whose_clock_is_wrong_serves_with_what_it_has() {
    let site = Site::new();
    assert!(matches!(site.open("a", wrong()), Err(CertificatesError::Clock(_))));
    let first = site.open("a", Ok(at(0))).unwrap();
    // Whatever names are wanted, and however old it is.
    let kept = site.open("b", wrong()).unwrap();
    assert_eq!(facts(&first), facts(&kept));
    // Of another authority it is of no use.
    let other = Authority::create(&ClusterUid::random().unwrap(), at(0)).unwrap();
    let other = Site { data_dir: site.data_dir.clone(), authority: Arc::new(other) };
    assert!(matches!(other.open("a", wrong()), Err(CertificatesError::Clock(_))));
    // Damage is no reason to stay down.
    std::fs::write(site.data_dir.join(FILE), "garbage").unwrap();
    assert_ne!(facts(&site.open("a", Ok(at(0))).unwrap()), facts(&first));
    std::mem::forget(other);
}

#[test]
fn a_restart_writes_nothing_unless_something_has_changed() {
    let site = Site::new();
    let first = site.open("a", Ok(at(0))).unwrap();
    let inodes = || [site.inode(FILE), site.inode(kubeconfig::FILE)];
    let before = inodes();
    let mut again = site.open("a", Ok(at(19))).unwrap();
    again.look(at(19)).unwrap();
    assert_eq!((facts(&again), inodes()), (facts(&first), before));
    for (name, days) in [("b", 19), ("b", 40)] {
        let other = site.open(name, Ok(at(days))).unwrap();
        assert_ne!(facts(&other), facts(&again));
        again = other;
    }
    for file in [FILE, kubeconfig::FILE] {
        let mode = std::fs::metadata(site.data_dir.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn what_a_clock_issued_that_was_years_ahead_is_issued_again() {
    let site = Site::new();
    let certificates = site.open("a", Ok(at(3650))).unwrap();
    let of_the_future = facts(&certificates);
    certificates.look(at(1)).unwrap();
    assert!(facts(&certificates).not_before < of_the_future.not_before);
    let kept = std::fs::read(site.data_dir.join(kubeconfig::FILE)).unwrap();
    certificates.look(at(1)).unwrap();
    assert_eq!(std::fs::read(site.data_dir.join(kubeconfig::FILE)).unwrap(), kept);
}

#[test]
fn the_administrators_certificate_is_renewed_while_the_cloud_runs() {
    let site = Site::new();
    let certificates = site.open("a", Ok(at(0))).unwrap();
    let read = || std::fs::read(site.data_dir.join(kubeconfig::FILE)).unwrap();
    let first = read();
    certificates.look(at(200)).unwrap();
    assert_eq!(read(), first);
    certificates.look(at(250)).unwrap();
    assert_ne!(read(), first);
}
