use super::super::env::tests::Objects;
use super::super::view::tests::object;
use super::*;
use serde_json::{Value, json};

fn pod(volumes: Value) -> Pod {
    let spec = json!({ "containers": [{ "name": "c", "image": "i" }], "volumes": volumes });
    let mut object = object("web", spec);
    object.value["metadata"]["labels"] = json!({ "app": "a" });
    Pod::of(&object).unwrap()
}

fn content_of(volume: Value, objects: &Objects) -> Result<Content, VolumeError> {
    let pod = pod(json!([volume]));
    content(&pod, &pod.spec.volumes[0], objects, &Placed::default())
}

fn text(content: Content) -> BTreeMap<String, (String, u32)> {
    let Content::Files(files) = content else { panic!("{content:?}") };
    let text = |f: File| (String::from_utf8(f.bytes).unwrap(), f.mode);
    files.into_iter().map(|(path, file)| (path, text(file))).collect()
}

#[test]
fn files_come_from_maps_secrets_and_fields() {
    let objects = Objects::default()
        .with("configmaps", "cm", json!({ "data": { "a": "1", "b": "2" } }))
        .with("secrets", "s", json!({ "data": { "p": "c2VjcmV0" } }));
    let all = content_of(json!({ "name": "v", "configMap": { "name": "cm" } }), &objects).unwrap();
    assert_eq!(text(all), [("a".into(), ("1".into(), 0o644)), ("b".into(), ("2".into(), 0o644))].into());
    let some = json!({ "name": "v", "secret": { "secretName": "s", "defaultMode": 0o400,
                       "items": [{ "key": "p", "path": "x/y" }] } });
    assert_eq!(text(content_of(some, &objects).unwrap()), [("x/y".into(), ("secret".into(), 0o400))].into());
    let projected = json!({ "name": "v", "projected": { "sources": [
        { "configMap": { "name": "cm", "items": [{ "key": "a", "path": "a", "mode": 0o600 }] } },
        { "serviceAccountToken": { "path": "token" } },
        { "downwardAPI": { "items": [{ "path": "l", "fieldRef": { "fieldPath": "metadata.labels" } }] } },
    ] } });
    assert_eq!(
        text(content_of(projected, &objects).unwrap()),
        [("a".into(), ("1".into(), 0o600)), ("l".into(), ("app=\"a\"".into(), 0o644))].into()
    );
}

#[test]
fn what_is_missing_or_leaves_the_volume_is_named() {
    let objects = Objects::default().with("configmaps", "cm", json!({ "data": { "a": "1" } }));
    let error = |volume: Value| content_of(volume, &objects).unwrap_err().to_string();
    assert_eq!(
        error(json!({ "name": "v", "secret": { "secretName": "s" } })),
        "volume v: secret \"s\" not found"
    );
    let optional = json!({ "name": "v", "secret": { "secretName": "s", "optional": true } });
    assert_eq!(content_of(optional, &objects).unwrap(), Content::Files(Files::new()));
    for path in ["../x", "/x", "a/../b", "", "..data"] {
        let items = json!([{ "key": "a", "path": path }]);
        let volume = json!({ "name": "v", "configMap": { "name": "cm", "items": items } });
        assert!(error(volume).contains("leaves the volume"), "{path}");
    }
    let items = json!([{ "key": "a", "path": "x" }, { "key": "a", "path": "x/y" }]);
    assert!(
        error(json!({ "name": "v", "configMap": { "name": "cm", "items": items } }))
            .contains("a file and a folder")
    );
    assert!(error(json!({ "name": "v", "emptyDir": { "medium": "HugePages" } })).contains("HugePages"));
}

#[test]
fn a_pods_dependencies_are_what_it_names() {
    let spec = json!({ "containers": [{ "name": "c", "image": "i",
        "envFrom": [{ "secretRef": { "name": "s" } }],
        "env": [{ "name": "x", "valueFrom": { "configMapKeyRef": { "name": "b", "key": "k" } } }] }],
        "volumes": [{ "name": "v", "projected": { "sources": [{ "configMap": { "name": "a" } }] } }],
        "imagePullSecrets": [{ "name": "p" }] });
    let pod = Pod::of(&object("web", spec)).unwrap();
    let names: Vec<_> =
        dependencies(&pod).into_iter().map(|k| format!("{}/{}", k.resource, k.name)).collect();
    assert_eq!(names, ["configmaps/a", "configmaps/b", "secrets/p", "secrets/s"]);
}

/// A scratch folder that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("holm-volume-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn files_of(list: &[(&str, &str)]) -> Content {
    let file =
        |(path, text): &(&str, &str)| (path.to_string(), File { bytes: text.as_bytes().into(), mode: 0o640 });
    Content::Files(list.iter().map(file).collect())
}

#[test]
fn a_volume_follows_its_files_in_one_step_and_is_left_alone_otherwise() {
    let scratch = Scratch::new("swap");
    let folder = Folder::new(&scratch.0, "uid");
    let pod = pod(json!([{ "name": "v", "configMap": { "name": "cm" } }]));
    let volume = scratch.0.join("pods/uid/volumes/v");
    let put = |files: &[(&str, &str)]| {
        folder.prepare(&pod, &[("v".into(), files_of(files))]).unwrap();
        fs::read_link(volume.join("..data")).unwrap()
    };
    let read = |path: &str| fs::read_to_string(volume.join(path)).ok();
    let first = put(&[("a", "1"), ("sub/b", "2")]);
    assert_eq!((read("a"), read("sub/b")), (Some("1".into()), Some("2".into())));
    assert_eq!(fs::metadata(volume.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(put(&[("a", "1"), ("sub/b", "2")]), first, "nothing is written when nothing changed");
    // A reader that holds the old folder open still reads the old file.
    let second = put(&[("a", "9"), ("c", "3")]);
    assert_ne!(first, second);
    assert_eq!((read("a"), read("c")), (Some("9".into()), Some("3".into())));
    assert_eq!(read("sub/b"), None);
    let names: BTreeSet<_> =
        fs::read_dir(&volume).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let second = second.to_str().unwrap().to_owned();
    assert_eq!(names, ["..data".to_string(), second, "a".into(), "c".into()].into());
    folder.remove().unwrap();
    folder.remove().unwrap();
    assert!(!scratch.0.join("pods/uid").exists());
}

#[test]
fn an_interrupted_write_is_made_good() {
    let scratch = Scratch::new("interrupted");
    let folder = Folder::new(&scratch.0, "uid");
    let pod = pod(json!([]));
    let volume = scratch.0.join("pods/uid/volumes/v");
    fs::create_dir_all(volume.join("..0")).unwrap();
    fs::write(volume.join("..0/half"), "x").unwrap();
    std::os::unix::fs::symlink("..nowhere", volume.join("..data")).unwrap();
    std::os::unix::fs::symlink("..0", volume.join("..data_tmp")).unwrap();
    folder.prepare(&pod, &[("v".into(), files_of(&[("a", "1")]))]).unwrap();
    assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
}

#[test]
fn host_paths_are_what_their_type_promises() {
    let scratch = Scratch::new("host");
    let check = |path: PathBuf, kind: &str| {
        host_path("v", &HostPath { path: path.display().to_string(), r#type: kind.into() })
    };
    let file = scratch.0.join("f");
    assert!(check(file.clone(), "File").unwrap_err().to_string().contains("hostPath"));
    check(file.clone(), "").unwrap();
    check(file.clone(), "FileOrCreate").unwrap();
    check(file.clone(), "File").unwrap();
    assert!(check(file.clone(), "Directory").unwrap_err().to_string().contains("no Directory"));
    check(scratch.0.join("d"), "DirectoryOrCreate").unwrap();
    check(scratch.0.join("d"), "Directory").unwrap();
    assert!(check(scratch.0.join("../x"), "").is_err());
    assert!(check(scratch.0.join("d"), "Nonsense").unwrap_err().to_string().contains("Nonsense"));
}
