"""Ready-made tasks on top of attnctl; import as ``attnctl.pipelines``."""
