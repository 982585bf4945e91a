//! The cloud's own certificates: one for hub and API, and the
//! administrator's. They are short-lived, and renewed while the cloud runs;
//! connections that are there go on.
//!
//! The first is kept beside the store, so that a cloud whose clock is wrong
//! after a restart can still serve the nodes that it has.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::authorities::Set;
use super::kubeconfig;
use super::time::CloudTime;
use crate::task::Tasks;
use crate::trust::authority::{Authority, AuthorityError, CLOUD_LIFE, Credentials};
use crate::trust::certificate::{Facts, is_due};
use crate::trust::clock::{ClockError, IssueTime};
use crate::trust::tls::{self, Serving, TlsError};

/// The file with key and certificate, in the data directory.
const FILE: &str = "server.pem";
/// How often the certificates' ages are looked at.
const LOOK: Duration = Duration::from_secs(60);

/// Why there is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// None is kept, and none can be issued.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// It could not be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// TLS cannot use it.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A file could not be written.
    #[error("cannot write {path} ({why}): remove what is there, or choose another --data-dir")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
}

/// What is certified, and by whom.
pub struct Subject {
    /// Who issues, and whose clients are let in.
    pub authorities: Arc<Set>,
    /// Names and addresses of the API.
    pub names: Vec<ServerName<'static>>,
    /// Where the API is, for the administrator's kubeconfig.
    pub api: std::net::SocketAddr,
    /// Where the files are.
    pub data_dir: PathBuf,
}

/// The certificates as they are served. Clones share them.
#[derive(Clone)]
pub struct Certificates {
    served: Arc<Mutex<Served>>,
    hub: Serving,
    api: Serving,
}

struct Served {
    subject: Subject,
    credentials: Credentials,
    facts: Facts,
}

impl Certificates {
    /// Takes the kept certificate if it still serves, else a new one; while
    /// the clock is wrong, whatever is kept.
    ///
    /// # Errors
    /// Nothing is kept and the clock is wrong; or a file cannot be written.
    pub fn open(
        subject: Subject,
        when: Result<IssueTime, ClockError>,
    ) -> Result<Certificates, CertificatesError> {
        let kept = load(&subject.data_dir, &subject.authorities.issuing);
        let now = when.as_ref().map(|when| when.time());
        let mut credentials = match (kept, now) {
            (Some((credentials, _, _)), Err(_)) => credentials,
            (Some((credentials, label, facts)), Ok(now))
                if label == self::label(&subject) && !is_due(&facts, now, Duration::ZERO) =>
            {
                credentials
            }
            _ => issue(&subject, when.clone()?)?,
        };
        if let Ok(when) = when {
            ensure_kubeconfig(&subject, when)?;
        }
        let facts = Facts::read(credentials.certificate()).map_err(AuthorityError::from)?;
        let (hub, api) = configs(&subject, &mut credentials)?;
        let served = Arc::new(Mutex::new(Served { subject, credentials, facts }));
        Ok(Certificates { served, hub: Serving::new(hub), api: Serving::new(api) })
    }

    /// What the hub serves with.
    pub fn hub(&self) -> Serving {
        self.hub.clone()
    }

    /// What the API serves with.
    pub fn api(&self) -> Serving {
        self.api.clone()
    }

    /// Renews from now on.
    pub fn start(self, tasks: &Tasks, time: CloudTime) {
        tasks.spawn("certificates", async move {
            let mut said = String::new();
            loop {
                smol::Timer::after(LOOK).await;
                // A clock that is wrong says so itself.
                let Ok(when) = time.issue() else { continue };
                match self.look(when) {
                    Ok(()) => said.clear(),
                    Err(error) if said != error.to_string() => {
                        said = error.to_string();
                        log::error!("the cloud's certificates are not renewed: {said}; trying again");
                    }
                    Err(_) => {}
                }
            }
        });
    }

    /// Serves with these authorities from now on: with a new certificate if
    /// another one issues.
    ///
    /// # Errors
    /// A new certificate is needed and the clock is wrong; or a file cannot be
    /// written. What was served before is then served on.
    pub fn adopt(
        &self,
        set: &Arc<Set>,
        when: Result<IssueTime, ClockError>,
    ) -> Result<(), CertificatesError> {
        let mut served = self.served();
        let before = std::mem::replace(&mut served.subject.authorities, set.clone());
        let same_issuer = before.issuing.fingerprint() == set.issuing.fingerprint();
        let outcome = match same_issuer {
            true => self.exchange(&mut served, None),
            false => when.clone().map_err(CertificatesError::from).and_then(|when| {
                let fresh = issue(&served.subject, when)?;
                self.exchange(&mut served, Some(fresh))
            }),
        };
        if outcome.is_err() {
            served.subject.authorities = before;
            return outcome;
        }
        match when {
            Ok(when) => ensure_kubeconfig(&served.subject, when),
            Err(_) => Ok(()),
        }
    }

    /// Renews what is due: at two thirds of its life, or if it was issued by a
    /// clock that has been set back since.
    fn look(&self, when: IssueTime) -> Result<(), CertificatesError> {
        let mut served = self.served();
        if is_due(&served.facts, when.time(), Duration::ZERO) {
            let fresh = issue(&served.subject, when)?;
            self.exchange(&mut served, Some(fresh))?;
            log::info!("the cloud's own certificate was renewed");
        }
        ensure_kubeconfig(&served.subject, when)
    }

    fn exchange(&self, served: &mut Served, fresh: Option<Credentials>) -> Result<(), CertificatesError> {
        if let Some(fresh) = fresh {
            served.facts = Facts::read(fresh.certificate()).map_err(AuthorityError::from)?;
            served.credentials = fresh;
        }
        let Served { subject, credentials, .. } = served;
        let (hub, api) = configs(subject, credentials)?;
        self.hub.exchange(hub);
        self.api.exchange(api);
        Ok(())
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        // What is left half done is done again by the next look.
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Config = Arc<rustls::ServerConfig>;

fn configs(subject: &Subject, credentials: &mut Credentials) -> Result<(Config, Config), CertificatesError> {
    credentials.vouched_for_by(subject.authorities.vouched()?);
    let authorities = subject.authorities.certificates();
    Ok((tls::hub_server(credentials, &authorities)?, tls::api_server(credentials, &authorities)?))
}

fn issue(subject: &Subject, when: IssueTime) -> Result<Credentials, CertificatesError> {
    let credentials = subject.authorities.issuing.issue_cloud(&subject.names, when, CLOUD_LIFE)?;
    let text = label(subject) + "\n" + &credentials.key_pem() + &credentials.certificate_pem();
    let path = subject.data_dir.join(FILE);
    kubeconfig::write(&path, &text)
        .map_err(|error| CertificatesError::Write { path: path.clone(), why: error.to_string() })?;
    Ok(credentials)
}

fn ensure_kubeconfig(subject: &Subject, when: IssueTime) -> Result<(), CertificatesError> {
    let path = subject.data_dir.join(kubeconfig::FILE);
    kubeconfig::ensure(&path, &subject.authorities, when, subject.api)
        .map_err(|why| CertificatesError::Write { path: path.clone(), why })
}

/// The file's first line: who issued it, for what names. PEM readers pass
/// over it.
fn label(subject: &Subject) -> String {
    let names: Vec<String> = subject.names.iter().map(|name| name.to_str().into_owned()).collect();
    format!("authority {} names {}", subject.authorities.issuing.fingerprint(), names.join(","))
}

/// What is kept, if it can be used and the authority is the one that issued
/// it.
fn load(data_dir: &Path, authority: &Authority) -> Option<(Credentials, String, Facts)> {
    let text = std::fs::read_to_string(data_dir.join(FILE)).ok()?;
    let label = text.lines().next()?.to_owned();
    let issuer = format!("authority {} ", authority.fingerprint());
    let credentials = Credentials::from_pem(&text, &text).ok().filter(|_| label.starts_with(&issuer))?;
    let facts = Facts::read(credentials.certificate()).ok()?;
    Some((credentials, label, facts))
}

#[cfg(test)]
mod tests;
