import java.io.File;
import java.net.URISyntaxException;
import org.eclipse.jgit.api.Git;
import org.eclipse.jgit.lib.ObjectId;
import org.eclipse.jgit.lib.RefUpdate;
import org.eclipse.jgit.transport.RefSpec;
import org.eclipse.jgit.transport.TagOpt;
import org.eclipse.jgit.transport.URIish;

/**
 * Clones and fetches with JGit, as Gerrit, Jenkins and IDEs do.
 *
 * <pre>
 * Client clone URL DIRECTORY         a bare mirror
 * Client pin URL DIRECTORY COMMIT    an empty repository, and one commit into it, as refs/heads/pinned
 * </pre>
 */
public final class Client {
    private Client() {
    }

    public static void main(String[] args) throws Exception {
        if (args.length == 3 && args[0].equals("clone")) {
            mirror(args[1], new File(args[2]));
        } else if (args.length == 4 && args[0].equals("pin")) {
            pin(args[1], new File(args[2]), args[3]);
        } else {
            throw new IllegalArgumentException("usage: clone URL DIRECTORY, or pin URL DIRECTORY COMMIT");
        }
    }

    private static void mirror(String url, File directory) throws Exception {
        Git.cloneRepository().setURI(url).setDirectory(directory).setBare(true).setMirror(true).call().close();
    }

    private static void pin(String url, File directory, String commit) throws Exception {
        try (Git git = Git.init().setDirectory(directory).setBare(true).call()) {
            addOrigin(git, url);
            git.fetch().setRemote("origin").setRefSpecs(new RefSpec(commit)).setTagOpt(TagOpt.NO_TAGS).call();
            // Of a commit by its id, JGit brings the objects and moves no ref.
            RefUpdate pinned = git.getRepository().updateRef("refs/heads/pinned");
            pinned.setNewObjectId(ObjectId.fromString(commit));
            if (pinned.update() != RefUpdate.Result.NEW) {
                throw new IllegalStateException("refs/heads/pinned: " + pinned.getResult());
            }
        }
    }

    private static void addOrigin(Git git, String url) throws Exception {
        try {
            git.remoteAdd().setName("origin").setUri(new URIish(url)).call();
        } catch (URISyntaxException e) {
            throw new IllegalArgumentException("not a URL: " + url, e);
        }
    }
}
