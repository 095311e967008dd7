package main

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

const (
	provisionerName = "tarn.local/directory"
	selectedNode    = "volume.kubernetes.io/selected-node"
	provisionedBy   = "pv.kubernetes.io/provisioned-by"
)

// provisionerMain answers PersistentVolumeClaims of StorageClasses whose provisioner
// is tarn.local/directory with "local" volumes (unlike hostPath, kubelet applies fsGroup to
// those): one directory each, removed when the volume is released.
func provisionerMain() {
	fs := flag.NewFlagSet("local-provisioner", flag.ExitOnError)
	kubeconfig := fs.String("kubeconfig", "", "kubeconfig file")
	dir := fs.String("dir", "", "directory the volumes are made in")
	fs.Parse(os.Args[1:])
	cfg, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Fatal(err)
	}
	cfg.QPS, cfg.Burst = 200, 400
	client := kubernetes.NewForConfigOrDie(cfg)
	ctx := context.Background()
	factory := informers.NewSharedInformerFactory(client, time.Minute)
	claims, volumes, classes := factory.Core().V1().PersistentVolumeClaims(), factory.Core().V1().PersistentVolumes(), factory.Storage().V1().StorageClasses()
	changed := make(chan struct{}, 1)
	wake := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: func(any) { wake() }, UpdateFunc: func(any, any) { wake() }, DeleteFunc: func(any) { wake() }}
	for _, i := range []cache.SharedIndexInformer{claims.Informer(), volumes.Informer(), classes.Informer()} {
		i.AddEventHandler(handler)
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for range changed {
		all, _ := claims.Lister().List(labels.Everything())
		for _, c := range all {
			if c.Spec.VolumeName != "" || c.Spec.StorageClassName == nil || c.DeletionTimestamp != nil {
				continue
			}
			class, err := classes.Lister().Get(*c.Spec.StorageClassName)
			if err != nil || class.Provisioner != provisionerName {
				continue
			}
			node := c.Annotations[selectedNode]
			if node == "" && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer {
				continue
			}
			if node == "" {
				node, _ = os.Hostname()
			}
			name := "pvc-" + string(c.UID)
			if _, err := volumes.Lister().Get(name); err == nil {
				continue
			}
			path := filepath.Join(*dir, name)
			if err := os.MkdirAll(path, 0o777); err != nil {
				klog.Error(err)
				continue
			}
			os.Chmod(path, 0o777)
			_, err = client.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
				ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: provisionerName}},
				Spec: corev1.PersistentVolumeSpec{
					Capacity:                      corev1.ResourceList{corev1.ResourceStorage: c.Spec.Resources.Requests[corev1.ResourceStorage]},
					AccessModes:                   c.Spec.AccessModes,
					VolumeMode:                    c.Spec.VolumeMode,
					StorageClassName:              class.Name,
					PersistentVolumeReclaimPolicy: *class.ReclaimPolicy,
					ClaimRef:                      &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID},
					PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
					NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
						MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}},
				},
			}, metav1.CreateOptions{})
			if err != nil && !apierrors.IsAlreadyExists(err) {
				klog.Error(err)
			}
		}
		vols, _ := volumes.Lister().List(labels.Everything())
		for _, v := range vols {
			if v.Annotations[provisionedBy] != provisionerName || v.Status.Phase != corev1.VolumeReleased ||
				v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || v.Spec.Local == nil || v.DeletionTimestamp != nil {
				continue
			}
			if filepath.Dir(v.Spec.Local.Path) == filepath.Clean(*dir) {
				os.RemoveAll(v.Spec.Local.Path)
			}
			if err := client.CoreV1().PersistentVolumes().Delete(ctx, v.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				klog.Error(err)
			}
		}
	}
}
