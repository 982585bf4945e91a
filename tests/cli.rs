//! What a person reads after a mistake: the real program, one line a mistake
//! that names the thing and the remedy, the documented exit code.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing
)]

mod host;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use holm::trust::UnixTime;
use holm::trust::code::{JoinCode, JoinSecret, SecretId};
use holm::trust::names::{ClusterUid, Endpoint, Fingerprint};
use host::containerd::pause;
use host::world::{NODE, free_port, holm, in_a_world};
use rustix::process::{Pid, Signal, kill_process};

const FAILED: i32 = 1;
const USAGE: i32 = 64;
const DAMAGED: i32 = 65;
const NO_INPUT: i32 = 66;
const UNAVAILABLE: i32 = 69;
const CANNOT_CREATE: i32 = 73;
const REFUSED: i32 = 77;

/// How long a command that is to fail may take.
const SOON: Duration = Duration::from_secs(15);

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        Folder(host::scratch(test))
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).unwrap();
        self.at(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A role that is killed when the test ends, whatever happens.
struct Running(Child);

impl Running {
    fn start(mut command: Command, log: &Path) -> Running {
        let log = std::fs::File::create(log).unwrap();
        Running(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    /// What it ends with, if it does in time.
    fn ends(&mut self, within: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        while started.elapsed() < within {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Some(status);
            }
            pause(Duration::from_millis(5));
        }
        None
    }

    /// A signal ends it in good order, within a second.
    #[track_caller]
    fn stops_at(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
        let status =
            self.ends(Duration::from_secs(1)).unwrap_or_else(|| panic!("still running after {signal:?}"));
        assert_eq!(status.code(), Some(0), "{signal:?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "waited 20 s for {what}");
        pause(Duration::from_millis(10));
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// What a command with a mistake says: it ends soon with `code`, and says one
/// line for each of `lines`, in which all its words stand.
#[track_caller]
fn says(command: &mut Command, code: i32, lines: &[&[&str]]) {
    let mut child = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let status = child.ends(SOON);
    let _ = child.0.kill();
    let (mut out, mut error) = (String::new(), String::new());
    child.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.0.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    let arguments: Vec<String> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    println!("$ holm {}\n{error}[{:?}]\n", arguments.join(" "), status.and_then(|status| status.code()));
    let status = status.unwrap_or_else(|| panic!("{arguments:?} did not end; it said {error:?}"));
    assert_eq!(status.code(), Some(code), "{arguments:?} said {error:?}");
    assert_eq!(out, "", "{arguments:?}");
    let said: Vec<&str> = error.lines().collect();
    assert_eq!(said.len(), lines.len(), "{arguments:?} said {error:?}");
    for (said, words) in said.iter().zip(lines) {
        assert!(said.starts_with("holm: ") && !said.contains("panicked"), "{said:?}");
        for word in *words {
            assert!(said.contains(word), "{word:?} is missing in {said:?}");
        }
    }
}

fn with(arguments: &[&str]) -> Command {
    let mut command = holm();
    command.args(arguments);
    command
}

/// A cloud that uses no port that anyone else does.
fn cloud(data_dir: &str) -> Command {
    with(&["cloud", "--data-dir", data_dir, "--listen=127.0.0.1:0", "--api-listen=127.0.0.1:0"])
}

/// A code that is well made, of a cloud that is nowhere.
fn code_at(endpoint: &str) -> String {
    let code = JoinCode {
        endpoints: vec![endpoint.parse().unwrap()],
        pins: vec![Fingerprint::from_bytes([7; 32])],
        cluster: ClusterUid::random().unwrap(),
        id: SecretId::random().unwrap(),
        secret: JoinSecret::random().unwrap(),
        expires: UnixTime::now(),
        node: None,
    };
    code.to_text().unwrap()
}

/// A code with something changed in it.
fn altered(code: &str, change: impl FnOnce(&mut JoinCode)) -> String {
    let mut code: JoinCode = code.parse().unwrap();
    change(&mut code);
    code.to_text().unwrap()
}

#[test]
fn wrong_words_are_named_with_the_right_ones() {
    let folder = Folder::new("wrong_words_are_named_with_the_right_ones");
    says(
        &mut with(&["frobnicate"]),
        USAGE,
        &[&["\"frobnicate\" is not a command", "cloud, edge, token create, ca status", "revoke, get"]],
    );
    says(&mut with(&["token", "crate"]), USAGE, &[&["\"token crate\"", "token create"]]);
    says(&mut with(&["cloud", "--frob", "x"]), USAGE, &[&["--frob is not a flag", "see holm cloud --help"]]);
    says(
        &mut with(&["edge", "--frob=x"]),
        USAGE,
        &[&["--frob is not a flag", "see holm edge --help"], &["--join"]],
    );
    says(&mut with(&["token", "create", "--data-dir"]), USAGE, &[&["--data-dir needs a value", "--help"]]);
    let broken = ["cloud", "--li\nsten", "--adver\u{1b}[31mtise"];
    says(&mut with(&broken), USAGE, &[&["--li\\nsten is not"], &["--adver\\u{1b}[31mtise is not"]]);
    says(&mut with(&["cloud", "now"]), USAGE, &[&["\"now\" is not expected", "--help"]]);
    says(&mut with(&["cloud", "--data-dir="]), USAGE, &[&["--data-dir is empty", "leave it out"]]);
    says(&mut with(&["status", "-v"]), USAGE, &[&["-v is not a flag", "holm status --help"]]);
    says(&mut with(&["get"]), USAGE, &[&["what to get is missing", "holm get pods"]]);
    let long = folder.at(&"long".repeat(30));
    says(&mut with(&["cloud", "--data-dir", &long]), USAGE, &[&["--data-dir", &long, "at most 97 bytes"]]);
}

#[test]
fn all_wrong_values_are_said_at_once() {
    let folder = Folder::new("all_wrong_values_are_said_at_once");
    let lines: [&[&str]; 3] = [
        &["--listen: \"nonsense\"", "such as 0.0.0.0:10000"],
        &["--advertise: \"x:0\"", "for example cloud.example.com:10000"],
        &["--api-san: \"a b\"", "host name"],
    ];
    let mut command = with(&["cloud", "--listen", "nonsense", "--api-san=a b", "--advertise", "a:1,x:0"]);
    says(&mut command, USAGE, &lines);

    let file = folder.write(
        "cloud.toml",
        "listen = 'nonsense'\nadvertise = ['a:1', 'x:0']\napi-san = 'a b'\nlisten-api = ':1'\nnode-name = 'x'\n",
    );
    let strange: [&[&str]; 2] =
        [&[&file, "\"listen-api\"", "api-listen"], &[&file, "\"node-name\"", "there are data-dir"]];
    says(&mut with(&["cloud", "--config", &file]), USAGE, &[&strange[..], &lines[..]].concat());

    let same = ["cloud", "--listen=127.0.0.1:7000", "--api-listen=127.0.0.1:7000"];
    says(&mut with(&same), USAGE, &[&["--listen and --api-listen", "127.0.0.1:7000", "of its own"]]);

    let mut edge = with(&["edge", "--data-dir", &folder.at("edge"), "--node-name=A_B", "--join=holm1.AAA"]);
    edge.args(["--runtime-endpoint", "tcp://1.2.3.4:5", "--api-listen=10550"]);
    let lines: [&[&str]; 4] = [
        &["--node-name: \"A_B\"", "use lower-case letters"],
        &["--runtime-endpoint", "tcp://1.2.3.4:5", "unix:///path"],
        &["--api-listen: \"10550\"", "such as"],
        &["--join: ", "incomplete", "paste the whole code"],
    ];
    says(&mut edge, USAGE, &lines);
    // Nothing was begun.
    assert!(!folder.0.join("edge").exists());
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = Folder::new("files_that_cannot_be_read_are_named");
    let edge = ["edge", "--data-dir", &folder.at("edge")];
    let missing = folder.at("missing");
    says(&mut with(&["cloud", "--config", &missing]), NO_INPUT, &[&["--config", &missing, "check the path"]]);
    let file = folder.write("bad.toml", "data-dir = '/d'\nlisten = = 1\n");
    says(
        &mut with(&["cloud", "--config", &file]),
        USAGE,
        &[&[&file, "line 2", "not TOML", "name = \"value\""]],
    );
    let join = format!("@{missing}");
    says(with(&edge).args(["--join", &join]), NO_INPUT, &[&["--join", &missing, "check the path"]]);
    says(with(&edge).env("HOLM_JOIN", &join), NO_INPUT, &[&["HOLM_JOIN", &missing, "check the path"]]);
    // With another mistake beside it, it is the other's code.
    let lines: [&[&str]; 2] = [&["--api-listen"], &[&missing]];
    says(with(&edge).args(["--join", &join, "--api-listen=x"]), USAGE, &lines);
}

#[test]
fn a_join_code_that_is_none_says_how_to_get_one() {
    let folder = Folder::new("a_join_code_that_is_none_says_how_to_get_one");
    let edge = ["edge", "--data-dir", &folder.at("edge")];
    let code = code_at("127.0.0.1:1");
    says(&mut with(&edge), USAGE, &[&["not joined", "--join", "holm token create"]]);
    says(with(&edge).args(["--join", ""]), USAGE, &[&["not joined", "--join", "holm token create"]]);
    says(
        with(&edge).args(["--join", "garbage"]),
        USAGE,
        &[&["--join", "not a join code", "holm token create"]],
    );
    says(with(&edge).args(["--join", &code[..40]]), USAGE, &[&["--join", "incomplete", "paste the whole"]]);
    says(
        with(&edge).env("HOLM_JOIN", &code[..40]),
        USAGE,
        &[&["HOLM_JOIN", "incomplete", "paste the whole"]],
    );
    let bound = altered(&code, |code| code.node = Some("third".parse().unwrap()));
    says(
        with(&edge).args(["--join", &bound, "--node-name=second"]),
        USAGE,
        &[&["--join is for node third", "--node-name second", "holm token create --node second"]],
    );
    let swapped = format!("{}{}", &code[..60], code[60..].to_ascii_uppercase());
    says(with(&edge).args(["--join", &swapped]), USAGE, &[&["--join", "altered", "paste it again"]]);
    let file = folder.write("code", "\n");
    says(
        with(&edge).arg(format!("--join=@{file}")),
        USAGE,
        &[&[&file, "not a join code", "holm token create"]],
    );
    says(
        with(&edge).args(["--join", "-"]),
        USAGE,
        &[&["standard input", "not a join code", "holm token create"]],
    );
}

#[test]
fn a_busy_port_is_named_with_its_flag() {
    let folder = Folder::new("a_busy_port_is_named_with_its_flag");
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let data = folder.at("data");
    for (free, taken) in [("--api-listen", "--listen"), ("--listen", "--api-listen")] {
        let mut command = with(&["cloud", "--data-dir", &data, free, "127.0.0.1:0", taken, &address]);
        says(&mut command, UNAVAILABLE, &[&[&format!("{taken} {address} is in use"), "choose another"]]);
    }
    let mut edge =
        with(&["edge", "--data-dir", &data, "--join", &code_at("127.0.0.1:1"), "--api-listen", &address]);
    says(&mut edge, UNAVAILABLE, &[&[&format!("--api-listen {address} is in use"), "choose another"]]);
    let mut elsewhere = with(&["cloud", "--data-dir", &data, "--listen=192.0.2.77:1"]);
    says(&mut elsewhere, UNAVAILABLE, &[&["--listen 192.0.2.77:1", "no interface", "choose another"]]);
}

#[test]
fn a_data_directory_that_cannot_be_used_is_named() {
    let folder = Folder::new("a_data_directory_that_cannot_be_used_is_named");
    let file = folder.write("file", "");
    let damaged = folder.at("damaged");
    std::fs::create_dir(&damaged).unwrap();
    folder.write("damaged/holm.redb", &"not a database ".repeat(1000));
    let below = format!("{file}/below");
    for (directory, why) in [
        (file.as_str(), "is not a directory"),
        (&below, "Not a directory"),
        ("/proc/x", "No such file"),
        ("/sys/x", ""),
    ] {
        says(&mut cloud(directory), CANNOT_CREATE, &[&["store", directory, why, "--data-dir"]]);
    }
    let remedy = "holm cloud restore FILE";
    says(&mut cloud(&damaged), DAMAGED, &[&["store", &damaged, "is damaged", remedy, "--data-dir"]]);
    // A file of the data directory that is something else.
    let odd = folder.at("odd");
    std::fs::create_dir_all(format!("{odd}/admin.kubeconfig")).unwrap();
    let words: &[&str] = &["admin.kubeconfig", "Is a directory", "--data-dir"];
    says(&mut cloud(&odd), CANNOT_CREATE, &[words]);
    std::fs::create_dir(format!("{odd}/identity")).unwrap();
    folder.write("odd/identity/cluster.json", "{}");
    let mut edge = with(&["edge", "--api-listen=127.0.0.1:0", "--data-dir", &odd]);
    says(&mut edge, CANNOT_CREATE, &[&["cluster.json is damaged", "join again with: holm edge --join"]]);
    let code = code_at("127.0.0.1:1");
    let mut edge = with(&["edge", "--data-dir", &file, "--api-listen=127.0.0.1:0", "--join", &code]);
    says(&mut edge, CANNOT_CREATE, &[&["store", &file, "--data-dir"]]);

    let data = folder.at("data");
    let log = folder.0.join("log");
    let _first = Running::start(cloud(&data), &log);
    until("the first cloud", || read(&log).contains("holm token create"));
    says(&mut cloud(&data), CANNOT_CREATE, &[&[&data, "in use by another process", "--data-dir of its own"]]);
}

/// What a command prints that does what it is asked to.
#[track_caller]
fn prints(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{:?}: {}", command, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_backup_brings_a_lost_store_back() {
    let folder = Folder::new("a_backup_brings_a_lost_store_back");
    let (data, file, log) = (folder.at("data"), folder.at("backup"), folder.0.join("log"));
    let store = folder.0.join("data/holm.redb");
    let backup = ["cloud", "backup", &file, "--data-dir", &data];
    let restore = ["cloud", "restore", &file, "--data-dir", &data];
    let confirm = ["cloud", "restore", "--confirm", "--data-dir", &data];
    let started = |log: &Path| until("the cloud", || read(log).contains("holm token create"));
    let secrets = || prints(&mut with(&["get", "secrets", "-o", "name", "--data-dir", &data]));
    let authority = |log: &Path| {
        started(log);
        let kubeconfig = read(&folder.0.join("data/admin.kubeconfig"));
        kubeconfig.lines().find(|line| line.contains("certificate-authority-data")).unwrap().to_owned()
    };

    says(&mut with(&backup), UNAVAILABLE, &[&["no cloud has its data in", &data, "--data-dir"]]);
    says(&mut with(&["cloud", "restore"]), USAGE, &[&["FILE", "--confirm"]]);
    says(&mut with(&restore), NO_INPUT, &[&[&file, "check the path"]]);
    says(&mut with(&confirm), UNAVAILABLE, &[&[&data, "start it"]]);
    {
        let mut cloud = Running::start(cloud(&data), &log);
        let before = authority(&log);
        // It runs meanwhile.
        let said = prints(&mut with(&backup));
        assert!(said.contains(&file) && said.contains("key of the certificate authority"), "{said}");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        says(&mut with(&restore), CANNOT_CREATE, &[&["a cloud runs", &data, "stop it first"]]);
        let own = store.to_str().unwrap();
        says(
            &mut with(&["cloud", "backup", own, "--data-dir", &data]),
            USAGE,
            &[&[own, "store itself", "another file"]],
        );
        assert!(prints(&mut with(&confirm)).contains("nothing is held back"));
        let code = prints(&mut with(&["token", "create", "--data-dir", &data]));
        assert!(code.starts_with("holm1."), "{code}");
        assert_eq!(secrets().lines().count(), 2);
        cloud.stops_at(Signal::TERM);
        // And it need not run.
        prints(&mut with(&backup));
        let itself = ["cloud", "backup", &folder.at("data/holm.redb"), "--data-dir", &data];
        says(&mut with(&itself), USAGE, &[&["is the store itself", "name another file"]]);
        assert_eq!(authority(&log), before);
    }

    // The store is lost in all the ways that it can be.
    let whole = std::fs::read(&store).unwrap();
    let before = authority(&log);
    let remedy = format!("holm cloud restore FILE --data-dir {data}");
    for (name, bytes) in
        [("empty", vec![]), ("cut", whole[..whole.len() / 2].to_vec()), ("zeroes", vec![0; whole.len()])]
    {
        std::fs::write(&store, &bytes).unwrap();
        says(&mut cloud(&data), DAMAGED, &[&[store.to_str().unwrap(), "damaged", &remedy]]);
        assert!(std::fs::read(&store).unwrap() == bytes, "{name}: nothing was made of it");
    }
    std::fs::remove_file(&store).unwrap();
    says(&mut cloud(&data), DAMAGED, &[&[store.to_str().unwrap(), "is gone", &remedy]]);
    assert!(!store.exists());

    let bad = folder.write("bad", "no backup");
    says(
        &mut with(&["cloud", "restore", &bad, "--data-dir", &data]),
        DAMAGED,
        &[&[&bad, "nothing was changed"]],
    );
    std::fs::write(&store, "damaged").unwrap();
    let said = prints(&mut with(&restore));
    assert!(said.contains("holm.redb.replaced-1") && said.contains("holm cloud restore --confirm"), "{said}");
    assert_eq!(read(&folder.0.join("data/holm.redb.replaced-1")), "damaged");
    {
        let _cloud = Running::start(cloud(&data), &log);
        assert_eq!(authority(&log), before, "the same cluster");
        // The code may have been used since: it is no longer good.
        assert_eq!(secrets().lines().collect::<Vec<_>>(), ["secrets/holm-ca"]);
        let held = ["get", "configmaps", "holm-restored", "-n", "holm-system", "--data-dir", &data];
        prints(&mut with(&held));
        assert!(prints(&mut with(&confirm)).contains("is dropped now"));
        says(&mut with(&held), FAILED, &[&["holm-restored", "not found"]]);
        assert!(prints(&mut with(&confirm)).contains("nothing is held back"));
    }
}

#[test]
fn a_socket_that_is_no_container_runtime_is_named() {
    let folder = Folder::new("a_socket_that_is_no_container_runtime_is_named");
    let edge = |socket: &str, data: &str| {
        let mut command = with(&["edge", "--api-listen=127.0.0.1:0", "--join", &code_at("127.0.0.1:1")]);
        command.args(["--data-dir", &folder.at(data), "--runtime-endpoint", &format!("unix://{socket}")]);
        command
    };
    let absent = folder.at("absent.sock");
    says(
        &mut edge(&absent, "a"),
        UNAVAILABLE,
        &[&["no container runtime", &absent, "start containerd", "--runtime-endpoint"]],
    );
    let file = folder.write("file", "");
    says(&mut edge(&file, "f"), UNAVAILABLE, &[&["no container runtime", &file, "--runtime-endpoint"]]);
    for (name, why, words) in [
        ("garbage.sock", "does not speak gRPC", "SSH-2.0-nobody\r\n".repeat(8)),
        (
            "http.sock",
            "does not speak gRPC",
            "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".into(),
        ),
        ("mute.sock", "", String::new()),
    ] {
        let path = folder.at(name);
        let listener = UnixListener::bind(&path).unwrap();
        #[allow(clippy::disallowed_methods)] // a test's own thread
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.write_all(words.as_bytes());
                // One with nothing to say hangs up at once.
                while !words.is_empty() && stream.read(&mut [0; 1024]).is_ok_and(|length| length > 0) {}
            }
        });
        says(&mut edge(&path, "data"), UNAVAILABLE, &[&[&path, why, "--runtime-endpoint"]]);
    }
}

#[test]
fn asking_a_role_that_does_not_run_says_so() {
    let folder = Folder::new("asking_a_role_that_does_not_run_says_so");
    let data = folder.at("data");
    for command in [&["get", "pods"][..], &["status"]] {
        says(
            with(command).args(["--data-dir", &data]),
            UNAVAILABLE,
            &[&["no holm runs", &data, "start it", "--data-dir"]],
        );
    }
    // A role that was killed leaves its socket behind.
    std::fs::create_dir(&data).unwrap();
    drop(UnixListener::bind(format!("{data}/holm.sock")).unwrap());
    says(with(&["status", "--data-dir"]).arg(&data), UNAVAILABLE, &[&["does not answer", &data, "start it"]]);
    if rustix::process::geteuid().is_root() {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).unwrap();
        // A copy that anyone may run. Not made by this process: a child that another test starts
        // meanwhile would hold it open for writing, and what is written cannot be run.
        let program = folder.0.join("holm");
        assert!(Command::new("cp").arg(holm().get_program()).arg(&program).status().unwrap().success());
        let mut other = Command::new(program);
        other.args(["status", "--data-dir", &data]).stdin(Stdio::null()).uid(65534).gid(65534);
        says(&mut other, UNAVAILABLE, &[&[&data, "not open to this user", "as root"]]);
    }
}

#[test]
fn a_token_that_cannot_be_made_says_why() {
    let folder = Folder::new("a_token_that_cannot_be_made_says_why");
    let data = folder.at("data");
    let create = |more: &[&str]| with(&[&["token", "create"], more].concat());
    says(&mut create(&["--data-dir", &data]), UNAVAILABLE, &[&["no kubeconfig", &data, "--kubeconfig FILE"]]);
    let lines: [&[&str]; 2] = [&["--node: \"A_\"", "use lower-case"], &["--ttl: \"3\"", "30m, 24h or 7d"]];
    says(&mut create(&["--ttl", "3", "--node=A_"]), USAGE, &lines);
    let nowhere = format!("127.0.0.1:{}", free_port());
    let file = folder.write(
        "kubeconfig",
        &format!(
            "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}], \
             clusters: [{{name: c, cluster: {{server: 'http://{nowhere}'}}}}], users: [{{name: u, user: {{}}}}]}}"
        ),
    );
    says(&mut create(&["--kubeconfig", &file]), UNAVAILABLE, &[&[&nowhere, "refused", "is holm cloud"]]);
    let file = folder.write("none", "certainly: not\n");
    says(&mut create(&["--kubeconfig", &file]), UNAVAILABLE, &[&["kubeconfig", &file, "--kubeconfig FILE"]]);
}

#[test]
fn a_cloud_ends_at_a_signal_and_answers_wrong_questions() {
    let folder = Folder::new("a_cloud_ends_at_a_signal_and_answers_wrong_questions");
    for signal in [Signal::TERM, Signal::INT] {
        let data = folder.at(&format!("{signal:?}"));
        let log = folder.0.join("log");
        let mut running = Running::start(cloud(&data), &log);
        until("the cloud", || read(&log).contains("holm token create"));
        let get = |more: &[&str]| with(&[&["get", "--data-dir", &data], more].concat());
        says(&mut get(&["pigs"]), USAGE, &[&["no resource \"pigs\"", "try pods"]]);
        says(&mut get(&["pods", "-oyaml"]), USAGE, &[&["--output: \"yaml\"", "wide, json, name"]]);
        says(&mut get(&["pods", "-o", "yaml"]), USAGE, &[&["--output: \"yaml\"", "wide, json, name"]]);
        says(&mut get(&["pods", "../x"]), USAGE, &[&["\"../x\" is not a name"]]);
        says(&mut get(&["pods", "nobody"]), FAILED, &[&["\"nobody\"", "not found"]]);
        running.stops_at(signal);
        assert!(!read(&log).contains("ERROR"), "{}", read(&log));
    }
}

#[test]
fn a_board_that_waits_for_its_cloud_ends_at_a_signal() {
    in_a_world("a_board_that_waits_for_its_cloud_ends_at_a_signal", |world| {
        let log = world.folder.join("waiting.log");
        let mut edge = world.edge_command();
        edge.arg("--join").arg(code_at(&format!("127.0.0.1:{}", free_port())));
        let mut running = Running::start(edge, &log);
        until("the edge to try", || read(&log).contains("cannot be joined at 127.0.0.1:"));
        assert!(read(&log).contains("see that holm cloud runs"), "{}", read(&log));
        running.stops_at(Signal::INT);
    });
}

#[test]
fn a_board_that_may_not_join_is_told_why() {
    in_a_world("a_board_that_may_not_join_is_told_why", |world| {
        world.start_cloud();
        let other = world.folder.join("stranger.log");
        let port = free_port();
        let mut stranger = with(&["cloud", "--api-listen=127.0.0.1:0", "--data-dir"]);
        stranger.arg(world.folder.join("stranger")).arg(format!("--listen=127.0.0.1:{port}"));
        let _stranger = Running::start(stranger, &other);
        until("the other cloud", || read(&other).contains("holm token create"));
        let stranger: Endpoint = format!("127.0.0.1:{port}").parse().unwrap();

        let code = world.token(&[]);
        let edge_named = |name: &str, code: &str| {
            let mut command =
                with(&["edge", "--api-listen=127.0.0.1:0", "--node-name", name, "--join", code]);
            command.args(["--runtime-endpoint", &world.containerd.endpoint()]);
            command.arg("--data-dir").arg(world.folder.join("second"));
            command
        };
        let edge = |code: &str| edge_named("second", code);

        let guessed = altered(&code, |code| code.secret = JoinSecret::random().unwrap());
        says(
            &mut edge(&guessed),
            REFUSED,
            &[&["does not let this board in", "secret is wrong", "holm token create"]],
        );
        let unknown = altered(&code, |code| code.id = SecretId::random().unwrap());
        says(&mut edge(&unknown), REFUSED, &[&["not one of this cluster's", "holm token create"]]);
        let elsewhere = altered(&code, |code| code.endpoints = vec![stranger.clone()]);
        let words: &[&str] =
            &[&stranger.to_string(), "is not the cloud that the join code names", "check the endpoint"];
        says(&mut edge(&elsewhere), REFUSED, &[words]);

        let bound = world.token(&["--node", "third"]);
        let unbound = altered(&bound, |code| code.node = None);
        says(
            &mut edge(&unbound),
            REFUSED,
            &[&["for node third, not for second", "holm token create --node second"]],
        );

        let expired = world.token(&["--ttl=1m"]);
        let id = expired.parse::<JoinCode>().unwrap().id;
        let past = r#"{"stringData":{"expires":"2026-11-01T00:00:00Z"}}"#;
        world.kubectl_ok(&[
            "patch",
            "secret",
            "-n",
            "holm-system",
            &format!("holm-join-{id}"),
            "--type=merge",
            "-p",
            past,
        ]);
        says(&mut edge(&expired), REFUSED, &[&["has expired", "holm token create"]]);

        // The board that joins with the code, at the second of its endpoints.
        let both = altered(&code, |code| code.endpoints.insert(0, stranger));
        let mut first = world.edge_command();
        first.args(["--join", &both]);
        let log = world.folder.join("first.log");
        let mut first = Running::start(first, &log);
        until("the first board", || read(&log).contains("holm get pods"));
        world.until_ready();
        says(&mut edge(&code), REFUSED, &[&["was used before, by node island", "holm token create"]]);
        let fresh = world.token(&[]);
        let words: &[&str] =
            &["there is a node island already", "--node-name", "holm token create --node island"];
        says(&mut edge_named(NODE, &fresh), REFUSED, &[words]);
        first.stops_at(Signal::TERM);

        // What a unit file goes on giving to a board that has joined.
        let gone = format!("@{}", world.folder.join("removed").display());
        for left in [&code, "garbage", &gone, "-", ""] {
            let log = world.folder.join("again.log");
            let mut again = world.edge_command();
            again.args(["--join", left]);
            let mut again = Running::start(again, &log);
            until("the board again", || read(&log).contains("holm get pods"));
            assert_eq!(read(&log).contains("the join code is not used"), !left.is_empty(), "{}", read(&log));
            again.stops_at(Signal::TERM);
        }

        // None of the refusals is in the way of the right code.
        let log = world.folder.join("second.log");
        let _second = Running::start(edge(&fresh), &log);
        until("the second board", || read(&log).contains("holm get pods"));
    });
}
