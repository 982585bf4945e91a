use super::*;
use crate::trust::certificate::{peer_node, peer_user};
use crate::trust::clock::{BUILD_TIME, Floor};
use proptest::prelude::*;

const LIFE: Duration = Duration::from_secs(1000);

fn at(seconds: u64) -> IssueTime {
    IssueTime::check(unix(BUILD_TIME.as_secs() + seconds), Floor::INITIAL).unwrap()
}

fn authority() -> Authority {
    Authority::create(&ClusterUid::random().unwrap(), at(0)).unwrap()
}

fn node() -> NodeName {
    "pi-1".parse().unwrap()
}

fn request(params: CertificateParams, key: &KeyPair) -> Vec<u8> {
    params.serialize_request(key).unwrap().der().to_vec()
}

fn read(request: &[u8]) -> NodeRequest {
    NodeRequest::read(request).unwrap()
}

#[test]
fn an_authority_survives_its_pem() {
    let made = authority();
    let read = Authority::from_pem(&made.certificate_pem(), &made.key_pem()).unwrap();
    assert_eq!(read.cluster_uid(), made.cluster_uid());
    assert_eq!(read.fingerprint(), made.fingerprint());
    assert_eq!(read.certificate(), made.certificate());
    let facts = Facts::read(made.certificate()).unwrap();
    assert!(facts.is_ca);
    assert_eq!(facts.not_after.as_secs(), at(0).time().as_secs() + AUTHORITY_LIFE.as_secs());
}

#[test]
fn a_damaged_authority_is_not_read() {
    let (a, b) = (authority(), authority());
    assert!(matches!(Authority::from_pem(&a.certificate_pem(), &b.key_pem()), Err(AuthorityError::Key)));
    assert!(matches!(Authority::from_pem("", &a.key_pem()), Err(AuthorityError::Certificate(_))));
    assert!(matches!(Authority::from_pem(&a.certificate_pem(), ""), Err(AuthorityError::Key)));
    let cloud = a.issue_cloud(&[], at(0), LIFE).unwrap();
    let leaf = Authority::from_pem(&cloud.certificate_pem(), &cloud.key_pem());
    assert!(matches!(leaf, Err(AuthorityError::NotOurs)));
}

#[test]
fn the_cloud_writes_the_subject_whatever_the_request_says() {
    let authority = authority();
    let key = new_key().unwrap();
    let mut forged = CertificateParams::new(vec!["kubernetes.default".into()]).unwrap();
    forged.distinguished_name.push(DnType::CommonName, "system:node:other");
    forged.distinguished_name.push(DnType::OrganizationName, ADMIN_GROUP);
    forged.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    forged.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    forged.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let issued = authority.issue_node(&node(), &read(&request(forged, &key)), at(0), LIFE).unwrap();
    let facts = Facts::read(&issued).unwrap();
    assert_eq!(facts.common_name.as_deref(), Some("system:node:pi-1"));
    assert_eq!(facts.organizations, ["system:nodes"]);
    assert!(!facts.is_ca);
    assert_eq!(facts.not_after.as_secs(), at(0).time().as_secs() + LIFE.as_secs());
    assert_eq!(facts.key, Fingerprint::of_spki(&key.subject_public_key_info()));
    let (_, parsed) = x509_parser::parse_x509_certificate(&issued).unwrap();
    assert!(parsed.subject_alternative_name().unwrap().is_none());
    let usages = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usages.client_auth && !usages.server_auth);
    assert!(!parsed.key_usage().unwrap().unwrap().value.key_cert_sign());
    let peer = peer_node(&[issued]).unwrap();
    assert_eq!((peer.node, peer.key_fingerprint, peer.not_after), (node(), facts.key, facts.not_after));
}

#[test]
fn the_longest_node_name_fits_a_certificate() {
    let name: NodeName = "a".repeat(253).parse().unwrap();
    let request = request(CertificateParams::default(), &new_key().unwrap());
    let issued = authority().issue_node(&name, &read(&request), at(0), LIFE).unwrap();
    assert_eq!(peer_node(&[issued]).unwrap().node, name);
}

#[test]
fn a_request_must_be_small_whole_signed_by_its_key_and_p256() {
    let key = new_key().unwrap();
    let good = request(CertificateParams::default(), &key);
    let fingerprint = Fingerprint::of_spki(&key.subject_public_key_info());
    assert_eq!(read(&good).key_fingerprint(), fingerprint);
    assert!(matches!(NodeRequest::read(&[0; REQUEST_MAX + 1]), Err(AuthorityError::RequestTooLong(4097))));
    assert!(matches!(NodeRequest::read(&good[..good.len() - 1]), Err(AuthorityError::RequestMalformed)));
    assert!(matches!(
        NodeRequest::read(&[good.as_slice(), &[0]].concat()),
        Err(AuthorityError::RequestMalformed)
    ));

    // Somebody else's public key under this signature.
    let other = new_key().unwrap();
    let mut stolen = good.clone();
    let (from, to) = (key.der_bytes(), other.der_bytes());
    let place = good.windows(from.len()).position(|window| window == from).unwrap();
    stolen[place..place + to.len()].copy_from_slice(to);
    assert!(matches!(NodeRequest::read(&stolen), Err(AuthorityError::RequestForged)));

    for kind in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
        let request = request(CertificateParams::default(), &KeyPair::generate_for(kind).unwrap());
        assert!(matches!(NodeRequest::read(&request), Err(AuthorityError::RequestKey)));
    }
}

#[test]
fn serials_do_not_repeat_and_have_16_bytes() {
    let authority = authority();
    let serial = || Facts::read(authority.issue_admin(at(0), LIFE).unwrap().certificate()).unwrap().serial;
    let serials: std::collections::HashSet<String> = (0..20).map(|_| serial()).collect();
    assert_eq!(serials.len(), 20);
    assert!(serials.iter().all(|serial| serial.len() == 32));
}

#[test]
fn the_administrator_is_a_master_and_no_node() {
    let admin = authority().issue_admin(at(0), LIFE).unwrap();
    let chain = [admin.certificate().clone()];
    let user = peer_user(&chain).unwrap();
    assert_eq!((user.name.as_str(), user.groups), (ADMIN_USER, vec![ADMIN_GROUP.to_owned()]));
    assert_eq!(peer_node(&chain), Err(CertificateError::NotANode(ADMIN_USER.into())));
    assert_eq!(peer_node(&[]), Err(CertificateError::Missing));
    let read = Credentials::from_pem(&admin.certificate_pem(), &admin.key_pem()).unwrap();
    assert_eq!(read.certificate(), admin.certificate());
    assert!(!format!("{admin:?}{:?}", authority()).contains("PRIVATE"));
}

#[test]
fn nothing_outlives_its_authority() {
    let authority = authority();
    let end = Facts::read(authority.certificate()).unwrap().not_after;
    let late = at(AUTHORITY_LIFE.as_secs() - 1);
    let admin = authority.issue_admin(late, Duration::MAX).unwrap();
    assert_eq!(Facts::read(admin.certificate()).unwrap().not_after, end);
    let too_late = at(AUTHORITY_LIFE.as_secs());
    assert!(matches!(authority.issue_admin(too_late, LIFE), Err(AuthorityError::AuthorityExpired)));
}

proptest! {
    #[test]
    fn altered_requests_never_get_a_certificate_for_another_key(
        at_byte in any::<proptest::sample::Index>(), with in 1u8..,
    ) {
        let key = new_key().unwrap();
        let mut request = request(CertificateParams::default(), &key);
        let byte = at_byte.index(request.len());
        request[byte] ^= with;
        if let Ok(taken) = NodeRequest::read(&request) {
            prop_assert_eq!(taken.key.der_bytes(), key.der_bytes());
        }
    }

    #[test]
    fn garbage_requests_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(NodeRequest::read(&bytes).is_err());
    }
}
