//! The administrator's kubeconfig, beside the store.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use data_encoding::BASE64;

use super::authorities::Set;
use crate::trust::authority::ADMIN_LIFE;
use crate::trust::certificate::{self, Facts, is_due};
use crate::trust::clock::IssueTime;

/// Its name in the data directory.
pub use crate::cli::token::ADMIN_KUBECONFIG as FILE;

/// Writes the file, readable by this user only, unless it is there, of this
/// cluster and server, and not yet due for renewal. It trusts every authority
/// of a rotation, and its certificate is of the one that issues.
pub fn ensure(path: &Path, authorities: &Set, when: IssueTime, server: SocketAddr) -> Result<(), String> {
    let authority_data = BASE64.encode(certificate::to_pem(&authorities.certificates()).as_bytes());
    if fs::read_to_string(path).is_ok_and(|text| is_current(&text, &authority_data, when, server)) {
        return Ok(());
    }
    let admin = authorities.issuing.issue_admin(when, ADMIN_LIFE).map_err(|error| error.to_string())?;
    let text = format!(
        "apiVersion: v1
kind: Config
clusters:
- name: holm
  cluster:
    server: https://{server}
    certificate-authority-data: {authority_data}
users:
- name: holm-admin
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: holm
  context:
    cluster: holm
    user: holm-admin
current-context: holm
",
        certificate = BASE64.encode(admin.certificate_pem().as_bytes()),
        key = BASE64.encode(admin.key_pem().as_bytes()),
    );
    write(path, &text).map_err(|error| error.to_string())
}

fn is_current(text: &str, authority: &str, when: IssueTime, server: SocketAddr) -> bool {
    let field = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
    let facts = || {
        let pem = BASE64.decode(field("client-certificate-data")?.as_bytes()).ok()?;
        Facts::read(certificate::from_pem(&pem).ok()?.first()?).ok()
    };
    field("certificate-authority-data") == Some(authority)
        && field("server") == Some(&format!("https://{server}"))
        && facts().is_some_and(|facts| !is_due(&facts, when.time(), Duration::ZERO))
}

/// Replaces a file by one that only this user may read.
pub(super) fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    // One left over from a cut may be anybody's to read.
    let _ = fs::remove_file(&fresh);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}
