//! An image with programs that no other has.

use std::path::{Path, PathBuf};

use crate::artifacts;

/// What it is called.
pub const NAME: &str = "tools:1";

/// Our own programs in it.
const TOOLS: [&str; 3] = ["escape", "scatter", "vsock-probe"];

/// Makes the image as an OCI layout below `folder`, and gives the layout's path.
pub fn build(folder: &Path) -> PathBuf {
    let mut files = String::new();
    for tool in TOOLS {
        let program = artifacts::guest_tool(tool);
        std::fs::copy(program, folder.join(tool)).expect("a copy of our own program");
        files += &format!("file /bin/{tool} 755 {tool}\n");
    }
    let recipe = format!(
        "name {NAME}\n\
         directory /bin 755\n\
         file /bin/busybox 755 /bin/busybox\n\
         applets /bin /bin/busybox\n\
         directory /etc 755\n\
         directory /tmp 1777\n\
         {files}\
         env PATH=/bin\n\
         cmd sh\n"
    );
    layout(folder, &recipe)
}

/// Makes the image that `recipe` describes as an OCI layout below `folder`, and gives the layout's path.
pub fn layout(folder: &Path, recipe: &str) -> PathBuf {
    let path = folder.join("recipe");
    std::fs::write(&path, recipe).expect("a folder for the recipe");
    let layout = folder.join("layout");
    if let Err(error) = imagebuilder::recipe::build(&path, &layout) {
        panic!("making an image: {error}\n{recipe}");
    }
    layout
}
