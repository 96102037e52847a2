//! Images and volumes in the share, without a daemon.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::mount::{MsFlags, mount, umount};
use shim::error::Kind;
use shim::share::{Image, Volume};

use crate::place::{Place, bind, fingerprint, is_read_only, overlay, web};

fn volume(source: &Path, read_only: bool) -> Volume<'_> {
    Volume { source, read_only, follow_mounts: false }
}

fn layers(place: &Place, lowers: &[&Path]) -> Vec<String> {
    let upper = place.tree("upper", &[]);
    let work = place.tree("work", &[]);
    let lowers: Vec<_> = lowers.iter().map(|lower| lower.display().to_string()).collect();
    vec![
        "index=off".into(),
        format!("workdir={}", work.display()),
        format!("upperdir={}", upper.display()),
        format!("lowerdir={}", lowers.join(":")),
    ]
}

pub(crate) fn image_is_the_lower_layers() {
    let place = Place::new();
    let above = place.tree("above", &[("etc/motd", "new"), ("bin/sh", "#")]);
    let below = place.tree("below", &[("etc/motd", "old"), ("etc/passwd", "root")]);
    let mounts = [overlay(&layers(&place, &[&above, &below]))];
    let before = [&above, &below].map(|tree| fingerprint(tree));

    place.share.add_image(&web(), 1, Image::Mounts(&mounts)).unwrap();
    assert_eq!(fs::read_to_string(place.image("etc/motd")).unwrap(), "new");
    assert_eq!(fs::read_to_string(place.image("etc/passwd")).unwrap(), "root");
    assert!(is_read_only(&place.image("")) && is_read_only(&place.image("etc/motd")));
    let error = place.share.add_image(&web(), 1, Image::Mounts(&mounts)).unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyExists);

    place.share.remove(&web(), 1).unwrap();
    assert!(!place.image("").exists());
    assert_eq!([&above, &below].map(|tree| fingerprint(tree)), before);
    place.share.remove(&web(), 1).unwrap();
    place.end();
}

pub(crate) fn image_of_one_layer_is_that_layer() {
    let place = Place::new();
    let layer = place.tree("layer", &[("bin/sh", "#")]);
    for (generation, mount) in [(1, overlay(&layers(&place, &[&layer]))), (2, bind(&layer))] {
        place.share.add_image(&web(), generation, Image::Mounts(&[mount])).unwrap();
        let shown = place.sandbox.join(format!("share/images/web@{generation}/rootfs/bin/sh"));
        assert_eq!(fs::metadata(&shown).unwrap().ino(), fs::metadata(layer.join("bin/sh")).unwrap().ino());
        assert!(is_read_only(&shown));
    }
    place.share.add_image(&web(), 3, Image::Directory(&layer)).unwrap();
    fs::write(layer.join("bin/sh"), "the original stays writable").unwrap();
    // Without remove: the ledger alone must be enough.
    place.end();
}

pub(crate) fn image_may_have_many_layers() {
    let place = Place::new();
    let long = "l".repeat(200);
    let trees: Vec<_> = (0..100)
        .map(|n| place.tree(&format!("{long}{n}"), &[(&format!("f{n}"), "x"), ("top", &n.to_string())]))
        .collect();
    let lowers: Vec<&Path> = trees.iter().map(AsRef::as_ref).collect();
    place.share.add_image(&web(), 1, Image::Mounts(&[overlay(&layers(&place, &lowers))])).unwrap();
    assert_eq!(fs::read_dir(place.image("")).unwrap().count(), 101);
    assert_eq!(fs::read_to_string(place.image("top")).unwrap(), "0");
    place.end();
}

pub(crate) fn image_is_not_copied() {
    const SIZE: u64 = 3 << 30;
    let place = Place::new();
    let layer = place.tree("layer", &[]);
    fs::File::create(layer.join("big")).unwrap().set_len(SIZE).unwrap();
    place.share.add_image(&web(), 1, Image::Mounts(&[overlay(&layers(&place, &[&layer]))])).unwrap();
    assert_eq!(fs::metadata(place.image("big")).unwrap().len(), SIZE);
    let base = fingerprint(&place.sandbox.join("share/base"));
    assert!(base.values().all(|(_, _, _, text)| text.is_empty()), "{base:?}");
    place.end();
}

pub(crate) fn bad_images_are_refused() {
    let place = Place::new();
    let (one, two) = (place.tree("one", &[]), place.tree("two", &[]));
    let good = layers(&place, &[&one, &two]);
    let refusal = |mounts: &[_]| place.share.add_image(&web(), 1, Image::Mounts(mounts)).unwrap_err();

    assert!(refusal(&[]).chain().contains("types []"));
    let erofs = shim::task::Mount { kind: "erofs".into(), ..bind(&one) };
    assert!(refusal(&[erofs.clone(), erofs]).chain().contains("[erofs, erofs]"));
    assert!(refusal(&[overlay(&good[..3])]).chain().contains("without lowerdir"));
    assert!(refusal(&[overlay(&["lowerdir=a:b".into()])]).chain().contains("absolute"));
    assert_eq!(refusal(&[overlay(&["lowerdir=/none:/nil".into()])]).kind(), Kind::Internal);
    let mapped = [good.clone(), vec!["uidmap=0:1:2".into()]].concat();
    assert_eq!(refusal(&[overlay(&mapped)]).kind(), Kind::Unimplemented);
    place.tree("upper", &[("written", "before")]);
    let error = refusal(&[overlay(&good)]);
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.chain().contains("upper has files"), "{}", error.chain());
    place.end();
}

pub(crate) fn volumes_are_of_the_host() {
    let place = Place::new();
    let tree = place.tree("data", &[("a", "1")]);
    let guest = place.share.add_volume(&web(), 1, 4, volume(&tree, false)).unwrap();
    assert_eq!(guest, "/run/kata-containers/shared/volumes/web@1/4");
    let file = tree.join("a");
    place.share.add_volume(&web(), 1, 5, volume(&file, true)).unwrap();
    fs::write(place.volume(4).join("b"), "2").unwrap();
    assert_eq!(fs::read_to_string(tree.join("b")).unwrap(), "2");
    fs::write(&file, "3").unwrap();
    assert_eq!(fs::read_to_string(place.volume(5)).unwrap(), "3");
    assert!(is_read_only(&place.volume(5)));
    // The tree of the mount points itself is nobody's to write.
    assert!(is_read_only(place.volume(5).parent().unwrap()));
    place.share.remove(&web(), 1).unwrap();
    assert_eq!(fs::read_to_string(tree.join("b")).unwrap(), "2");
    place.end();
}

pub(crate) fn read_only_volume_is_so_below_too() {
    let place = Place::new();
    let tree = place.tree("data", &[("sub/x", "")]);
    let sub = tree.join("sub");
    mount(Some("tmpfs"), &sub, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(sub.join("y"), "").unwrap();
    place.share.add_volume(&web(), 1, 0, volume(&tree, true)).unwrap();
    assert!(is_read_only(&place.volume(0).join("sub/y")));
    fs::write(sub.join("y"), "the host may").unwrap();
    place.share.remove(&web(), 1).unwrap();
    umount(&sub).unwrap();
    place.end();
}

pub(crate) fn bad_volumes_are_refused() {
    let place = Place::new();
    let tree = place.tree("data", &[]);
    let refusal = |source: &Path| place.share.add_volume(&web(), 1, 0, volume(source, false)).unwrap_err();
    let _socket = UnixListener::bind(tree.join("socket")).unwrap();
    let error = refusal(&tree.join("socket"));
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.chain().contains("is a Socket; only files and directories"), "{}", error.chain());
    assert_eq!(refusal(Path::new("/dev/null")).kind(), Kind::InvalidArgument);
    assert_eq!(refusal(&tree.join("none")).kind(), Kind::NotFound);
    place.end();
}

pub(crate) fn planted_links_are_not_followed() {
    let place = Place::new();
    let (victim, tree) = (place.tree("victim", &[("0/kept", "")]), place.tree("data", &[]));
    let base = place.sandbox.join("share/base/volumes");
    symlink(&victim, base.join("web@1")).unwrap();
    assert!(place.share.add_volume(&web(), 1, 0, volume(&tree, false)).is_err());
    fs::create_dir(base.join("web@2")).unwrap();
    symlink(&victim, base.join("web@2/0")).unwrap();
    assert!(place.share.add_volume(&web(), 2, 0, volume(&tree, false)).is_err());
    assert!(victim.join("0/kept").exists());
    place.end();
}
