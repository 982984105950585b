/* pyxis's options of srun, by a plugin of SLURM as pyxis is one: --container-image, --container-mounts
 * and --container-workdir. The container is a mount namespace that container.sh furnishes.
 *
 * plugstack.conf: required pyxis.so CONTAINER_SH ROOT */
#define _GNU_SOURCE
#include <sched.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

SPANK_PLUGIN(pyxis, 1)

static char *values[3]; /* image, mounts, workdir */

static int take(int which, const char *text, int is_remote)
{
    (void) is_remote;
    free(values[which]);
    values[which] = strdup(text);
    return ESPANK_SUCCESS;
}

static struct spank_option options[] = {
    {"container-image", "IMAGE", "what the container holds", 1, 0, take},
    {"container-mounts", "FROM:TO,...", "what it sees of the disks", 1, 1, take},
    {"container-workdir", "FOLDER", "where the command begins", 1, 2, take},
    SPANK_OPTIONS_TABLE_END};

int slurm_spank_init(spank_t spank, int argc, char **argv)
{
    int n;
    (void) argc;
    (void) argv;
    for (n = 0; n < 3; n++)
        if (spank_option_register(spank, &options[n]) != ESPANK_SUCCESS)
            return -1;
    return ESPANK_SUCCESS;
}

int slurm_spank_task_init_privileged(spank_t spank, int argc, char **argv)
{
    pid_t child;
    int status;
    (void) spank;
    if (!values[0])
        return ESPANK_SUCCESS;
    if (argc != 2 || !values[1] || unshare(CLONE_NEWNS))
        return -1;
    child = fork();
    if (child == 0) {
        execl("/bin/bash", "bash", argv[0], argv[1], values[0], values[1], (char *) NULL);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || status) {
        slurm_error("pyxis: container %s cannot be made with mounts %s", values[0], values[1]);
        return -1;
    }
    return chroot(argv[1]) ? -1 : ESPANK_SUCCESS;
}

int slurm_spank_task_init(spank_t spank, int argc, char **argv)
{
    (void) spank;
    (void) argc;
    (void) argv;
    if (!values[0] || !chdir(values[2] ? values[2] : "/"))
        return ESPANK_SUCCESS;
    slurm_error("pyxis: couldn't chdir to %s in the container", values[2]);
    return -1;
}
