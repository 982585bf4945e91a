//! A pod's folder on disk: `<data-dir>/pods/<uid>/`.
//!
//! `volumes/<name>` is an emptyDir or the files of ConfigMaps, Secrets and the downward API;
//! `containers/<name>/<restart>` a termination message; `etc-hosts` the pod's `/etc/hosts`.
//! What a volume holds is computed first ([`files`], pure) and then written in one step that a
//! reader sees entirely or not at all: the files are in a folder of their own and `..data` is a
//! link to it, as in a kubelet's volumes. Nothing is written when nothing changed.

use super::env::{self, Lookup, Placed};
use super::view::{FieldFiles, FilesOf, HostPath, Pod, Volume};
use crate::cri::v1;
use crate::object::Key;
use rustix::mount::{MountFlags, UnmountFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// The files of a volume by relative path.
pub type Files = BTreeMap<String, File>;

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// An empty folder, on disk or in memory, which the pod fills.
    Empty {
        /// In memory, with at most this many bytes (0: the kernel's default).
        memory: Option<u64>,
    },
    /// Files that Holm keeps up to date.
    Files(Files),
    /// A path of the host.
    Host(HostPath),
}

/// Why a volume cannot be made now.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// It asks for something that is not there, or that makes no sense.
    #[error("volume {name}: {why}")]
    Content {
        /// The volume.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The disk said no.
    #[error("{doing} {path}: {source}")]
    Disk {
        /// What was tried.
        doing: &'static str,
        /// With which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn disk<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> VolumeError + 'a {
    move |source| VolumeError::Disk { doing, path: path.into(), source }
}

/// The ConfigMaps and Secrets that a pod names, in volumes or variables.
pub fn dependencies(pod: &Pod) -> BTreeSet<Key> {
    let mut out = BTreeSet::new();
    let mut need = |resource: &str, name: &str| {
        if !name.is_empty() {
            out.insert(env::key(resource, &pod.metadata.namespace, name));
        }
    };
    for volume in &pod.spec.volumes {
        let projected = volume.projected.iter().flat_map(|p| &p.sources);
        let maps = projected.clone().filter_map(|s| s.config_map.as_ref());
        maps.chain(&volume.config_map).for_each(|f| need("configmaps", &f.name));
        let secrets = projected.filter_map(|s| s.secret.as_ref());
        secrets.chain(&volume.secret).for_each(|f| need("secrets", &f.name));
    }
    for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
        for from in &container.env_from {
            from.config_map_ref.iter().for_each(|n| need("configmaps", &n.name));
            from.secret_ref.iter().for_each(|n| need("secrets", &n.name));
        }
        for source in container.env.iter().filter_map(|e| e.value_from.as_ref()) {
            source.config_map_key_ref.iter().for_each(|k| need("configmaps", &k.name));
            source.secret_key_ref.iter().for_each(|k| need("secrets", &k.name));
        }
    }
    pod.spec.image_pull_secrets.iter().for_each(|n| need("secrets", &n.name));
    out
}

/// What a volume is made of now. A service account token is left out: the board has none yet.
///
/// # Errors
/// [`VolumeError::Content`] naming what is missing.
pub fn content(
    pod: &Pod,
    volume: &Volume,
    lookup: &dyn Lookup,
    placed: &Placed,
) -> Result<Content, VolumeError> {
    let error = |why: String| VolumeError::Content { name: volume.name.clone(), why };
    if let Some(path) = &volume.host_path {
        return Ok(Content::Host(path.clone()));
    }
    let mut out = Files::new();
    if let Some(from) = &volume.config_map {
        files(pod, "configmaps", from, from.default_mode, lookup, &mut out).map_err(error)?;
    } else if let Some(from) = &volume.secret {
        files(pod, "secrets", from, from.default_mode, lookup, &mut out).map_err(error)?;
    } else if let Some(from) = &volume.downward_api {
        fields(pod, from, from.default_mode, placed, &mut out).map_err(error)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode;
        for source in &projected.sources {
            if let Some(from) = &source.config_map {
                files(pod, "configmaps", from, mode, lookup, &mut out).map_err(error)?;
            }
            if let Some(from) = &source.secret {
                files(pod, "secrets", from, mode, lookup, &mut out).map_err(error)?;
            }
            if let Some(from) = &source.downward_api {
                fields(pod, from, mode, placed, &mut out).map_err(error)?;
            }
        }
    } else {
        let empty = volume.empty_dir.clone().unwrap_or_default();
        let limit = empty.size_limit.as_ref().and_then(super::view::quantity).unwrap_or(0) / 1000;
        let limit = u64::try_from(limit).unwrap_or(0);
        return match empty.medium.as_str() {
            "" => Ok(Content::Empty { memory: None }),
            "Memory" => Ok(Content::Empty { memory: Some(limit) }),
            other => Err(error(format!("emptyDir.medium {other:?} is not supported"))),
        };
    }
    for path in out.keys() {
        let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
        if path.is_empty() || !plain || path.starts_with("..") {
            return Err(error(format!("path {path:?} leaves the volume")));
        }
    }
    // A file cannot be a folder as well.
    for path in out.keys() {
        if out.keys().any(|other| other.strip_prefix(path.as_str()).is_some_and(|r| r.starts_with('/'))) {
            return Err(error(format!("path {path:?} is a file and a folder")));
        }
    }
    Ok(Content::Files(out))
}

const DEFAULT_MODE: u32 = 0o644;

fn files(
    pod: &Pod,
    resource: &str,
    from: &FilesOf,
    mode: Option<u32>,
    lookup: &dyn Lookup,
    out: &mut Files,
) -> Result<(), String> {
    let mode = mode.unwrap_or(DEFAULT_MODE) & 0o777;
    let object = lookup.get(&env::key(resource, &pod.metadata.namespace, &from.name));
    let mut data = match object {
        Some(object) => env::data(&object),
        None if from.optional => BTreeMap::new(),
        None => return Err(env::missing(resource, &from.name)),
    };
    match &from.items {
        None => out.extend(data.into_iter().map(|(path, bytes)| (path, File { bytes, mode }))),
        Some(items) => {
            for item in items {
                match data.remove(&item.key) {
                    Some(bytes) => {
                        let mode = item.mode.unwrap_or(mode) & 0o777;
                        data.insert(item.key.clone(), bytes.clone());
                        out.insert(item.path.clone(), File { bytes, mode });
                    }
                    None if from.optional => {}
                    None => return Err(format!("{resource} {} has no key {:?}", from.name, item.key)),
                }
            }
        }
    }
    Ok(())
}

fn fields(
    pod: &Pod,
    from: &FieldFiles,
    mode: Option<u32>,
    placed: &Placed,
    out: &mut Files,
) -> Result<(), String> {
    for item in &from.items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => env::field(pod, field, placed)?,
            (None, Some(from)) => {
                let container = pod.container(&from.container_name);
                let container = container.ok_or_else(|| format!("no container {:?}", from.container_name))?;
                env::resource(container, from)?
            }
            (None, None) => return Err(format!("{}: names no field", item.path)),
        };
        let mode = item.mode.or(mode).unwrap_or(DEFAULT_MODE) & 0o777;
        out.insert(item.path.clone(), File { bytes: text.into_bytes(), mode });
    }
    Ok(())
}

/// The folders of one pod.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// The folder of the pod with that uid, below `<data_dir>/pods`.
    pub fn new(data_dir: &Path, uid: &str) -> Folder {
        Folder { root: data_dir.join("pods").join(uid) }
    }

    /// Where a volume is.
    fn volume(&self, name: &str) -> PathBuf {
        self.root.join("volumes").join(name)
    }

    /// The pod's `/etc/hosts`.
    pub fn hosts(&self) -> PathBuf {
        self.root.join("etc-hosts")
    }

    /// The termination message file of one run.
    pub fn message(&self, container: &str, restart: u32) -> PathBuf {
        self.root.join("containers").join(container).join(restart.to_string())
    }

    /// Makes every volume, or brings it up to date.
    ///
    /// # Errors
    /// See [`VolumeError`].
    pub fn prepare(&self, pod: &Pod, contents: &[(String, Content)]) -> Result<(), VolumeError> {
        make_folder(&self.root, 0o750)?;
        let group = pod.spec.security_context.fs_group;
        for (name, content) in contents {
            let path = self.volume(name);
            match content {
                Content::Host(host) => host_path(name, host)?,
                Content::Empty { memory } => empty(&path, *memory, group)?,
                Content::Files(files) => write_files(&path, files, group)?,
            }
        }
        Ok(())
    }

    /// Where a container's volume mounts come from.
    pub fn mounts(&self, pod: &Pod, container: &super::view::Container) -> Vec<v1::Mount> {
        let mounts = container.volume_mounts.iter().filter_map(|mount| {
            let volume = pod.spec.volumes.iter().find(|v| v.name == mount.name)?;
            let (host, kept) = match &volume.host_path {
                Some(host) => (PathBuf::from(&host.path), false),
                None => {
                    let kept = volume.config_map.is_some()
                        || volume.secret.is_some()
                        || volume.downward_api.is_some()
                        || volume.projected.is_some();
                    (self.volume(&volume.name), kept)
                }
            };
            let propagation = match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => v1::MountPropagation::HostToContainer,
                Some("Bidirectional") => v1::MountPropagation::Bidirectional,
                _ => v1::MountPropagation::Private,
            };
            Some(v1::Mount {
                container_path: mount.mount_path.clone(),
                host_path: host.display().to_string(),
                // What Holm keeps up to date is not the container's to change.
                readonly: mount.read_only || kept,
                selinux_relabel: false,
                propagation: propagation.into(),
            })
        });
        mounts.collect()
    }

    /// Removes everything, file systems in memory included.
    ///
    /// # Errors
    /// [`VolumeError::Disk`].
    pub fn remove(&self) -> Result<(), VolumeError> {
        let volumes = self.root.join("volumes");
        match fs::read_dir(&volumes) {
            Ok(entries) => {
                for entry in entries.flatten() {
                    let path = entry.path();
                    if is_mounted(&path) {
                        rustix::mount::unmount(&path, UnmountFlags::DETACH)
                            .map_err(|e| disk("unmount", &path)(e.into()))?;
                    }
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(disk("read", &volumes)(e)),
        }
        match fs::remove_dir_all(&self.root) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(disk("remove", &self.root)(e)),
            _ => Ok(()),
        }
    }
}

/// Removes the folders of all pods but those with these uids.
///
/// # Errors
/// [`VolumeError::Disk`]: the first one that could not be removed, after all were tried.
pub fn sweep(data_dir: &Path, keep: &BTreeSet<String>) -> Result<(), VolumeError> {
    let mut outcome = Ok(());
    for entry in fs::read_dir(data_dir.join("pods")).into_iter().flatten().flatten() {
        let uid = entry.file_name().to_string_lossy().into_owned();
        if !keep.contains(&uid) {
            outcome = outcome.and(Folder::new(data_dir, &uid).remove());
        }
    }
    outcome
}

/// Writes a small file unless it holds just that.
///
/// # Errors
/// [`VolumeError::Disk`].
pub fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), VolumeError> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(disk("create folder", folder))?;
    }
    // In place: a container may have this very file mounted.
    fs::write(path, bytes).map_err(disk("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(disk("set mode of", path))
}

fn make_folder(path: &Path, mode: u32) -> Result<(), VolumeError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(disk("create folder", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(disk("set mode of", path))
}

fn own(path: &Path, group: Option<u32>) -> Result<(), VolumeError> {
    match group {
        Some(group) => {
            std::os::unix::fs::lchown(path, None, Some(group)).map_err(disk("change group of", path))
        }
        None => Ok(()),
    }
}

fn is_mounted(path: &Path) -> bool {
    let device = |p: &Path| fs::symlink_metadata(p).ok().map(|m| m.dev());
    let parent = path.parent().and_then(device);
    parent.is_some() && device(path) != parent
}

fn empty(path: &Path, memory: Option<u64>, group: Option<u32>) -> Result<(), VolumeError> {
    let is_new = !path.is_dir();
    make_folder(path, 0o777)?;
    let mut changed = is_new;
    if let Some(limit) = memory
        && !is_mounted(path)
    {
        let size = if limit == 0 { String::new() } else { format!(",size={limit}") };
        let options = std::ffi::CString::new(format!("mode=0777{size}")).unwrap_or_default();
        rustix::mount::mount(
            "tmpfs",
            path,
            "tmpfs",
            MountFlags::NODEV | MountFlags::NOSUID,
            options.as_c_str(),
        )
        .map_err(|e| disk("mount tmpfs on", path)(e.into()))?;
        changed = true;
    }
    if changed && group.is_some() {
        own(path, group)?;
        // New files belong to the group as well.
        fs::set_permissions(path, fs::Permissions::from_mode(0o2777)).map_err(disk("set mode of", path))?;
    }
    Ok(())
}

/// Checks what `hostPath.type` promises, and creates what it allows to be created.
fn host_path(name: &str, host: &HostPath) -> Result<(), VolumeError> {
    use std::os::unix::fs::FileTypeExt as _;
    let path = Path::new(&host.path);
    let error = |why: String| VolumeError::Content { name: name.into(), why };
    if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        return Err(error(format!("hostPath.path {:?} is not absolute or has \"..\"", host.path)));
    }
    match host.r#type.as_str() {
        "DirectoryOrCreate" => return make_folder(path, 0o755),
        "FileOrCreate" if !path.exists() => return write_new(path),
        _ => {}
    }
    let wanted: fn(&fs::FileType) -> bool = match host.r#type.as_str() {
        "" => return Ok(()),
        "Directory" => fs::FileType::is_dir,
        "File" | "FileOrCreate" => fs::FileType::is_file,
        "Socket" => |t| t.is_socket(),
        "CharDevice" => |t| t.is_char_device(),
        "BlockDevice" => |t| t.is_block_device(),
        other => return Err(error(format!("hostPath.type {other:?} is unknown"))),
    };
    match fs::metadata(path) {
        Ok(found) if wanted(&found.file_type()) => Ok(()),
        Ok(_) => Err(error(format!("hostPath {} is no {}", host.path, host.r#type))),
        Err(e) => Err(error(format!("hostPath {}: {e}", host.path))),
    }
}

fn write_new(path: &Path) -> Result<(), VolumeError> {
    match fs::File::options().write(true).create_new(true).open(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(disk("create", path)(e)),
        _ => Ok(()),
    }
}

const LINK: &str = "..data";

/// Makes `volume` hold `files` and nothing else.
fn write_files(volume: &Path, files: &Files, group: Option<u32>) -> Result<(), VolumeError> {
    make_folder(volume, 0o755)?;
    let link = volume.join(LINK);
    let old = fs::read_link(&link).ok().filter(|_| link.is_dir());
    if old.is_none() || read_files(&link).is_none_or(|now| now != *files) {
        // A name that was never used: of two after each other in one second too.
        let fresh = (0..u32::MAX).map(|n| format!("..{n}")).find(|n| !volume.join(n).exists());
        let fresh = fresh.unwrap_or_default();
        let folder = volume.join(&fresh);
        make_folder(&folder, 0o755)?;
        for (path, file) in files {
            let path = folder.join(path);
            if let Some(parent) = path.parent() {
                make_folder(parent, 0o755)?;
            }
            fs::write(&path, &file.bytes).map_err(disk("write", &path))?;
            own(&path, group)?;
            // A group that is to read them can, whatever the mode says otherwise.
            let mode = if group.is_some() { file.mode | 0o040 } else { file.mode };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                .map_err(disk("set mode of", &path))?;
        }
        let next = volume.join("..data_tmp");
        let _ = fs::remove_file(&next);
        std::os::unix::fs::symlink(&fresh, &next).map_err(disk("link", &next))?;
        fs::rename(&next, &link).map_err(disk("rename", &link))?;
    }
    // What users open: a link for every first part of a path.
    let tops: BTreeSet<&str> = files.keys().filter_map(|p| p.split('/').next()).collect();
    for top in &tops {
        let path = volume.join(top);
        if fs::symlink_metadata(&path).is_err() {
            std::os::unix::fs::symlink(Path::new(LINK).join(top), &path).map_err(disk("link", &path))?;
        }
    }
    let current = fs::read_link(&link).ok();
    for entry in fs::read_dir(volume).map_err(disk("read", volume))?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let path = entry.path();
        if name.starts_with("..") {
            // Left over by an interrupted write.
            if name != LINK && current.as_deref() != Some(Path::new(name.as_ref())) && path.is_dir() {
                fs::remove_dir_all(&path).map_err(disk("remove", &path))?;
            }
        } else if !tops.contains(name.as_ref()) {
            fs::remove_file(&path).map_err(disk("remove", &path))?;
        }
    }
    Ok(())
}

/// The files below a folder, without groups; `None` if they cannot all be read.
fn read_files(folder: &Path) -> Option<Files> {
    let mut out = Files::new();
    let mut rest = vec![String::new()];
    while let Some(at) = rest.pop() {
        for entry in fs::read_dir(folder.join(&at)).ok()? {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            let path = if at.is_empty() { name } else { format!("{at}/{name}") };
            if entry.file_type().ok()?.is_dir() {
                rest.push(path);
            } else {
                let mode = entry.metadata().ok()?.permissions().mode() & 0o777;
                out.insert(path, File { bytes: fs::read(entry.path()).ok()?, mode });
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests;
